"""What a LoRA is: dialect, the networks that it is for and how sure that is, ranks, alphas, modules by pattern."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lading.catalog import registry
from lading.catalog.change import Shape
from lading.catalog.lora_bases import (
    MATCHES,
    BaseModules,
    LoraBase,
    LoraNetwork,
    modules_by_pattern,
    shipped_lora_bases,
)
from lading.catalog.lora_names import DENOISER, LORA, LoraModule, sort_lora
from lading.catalog.shapes import pattern_of
from lading.checkpoint.inventory import Checkpoint
from lading.checkpoint.scalars import read_scalars

_MOST_JSON = 1_000_000
_MOST_TEXT = 200
_MOST_PATTERNS = 12
_MOST_NAMES = 5
_CLAIMS = (
    *("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "ss_network_module"),
    *("ss_network_dim", "ss_network_alpha", "base_model_name_or_path"),
)
"""What trainers write of the base, in the metadata of the file or in PEFT's adapter_config.json."""


@dataclass(frozen=True)
class LoraMatch(LoraNetwork):
    """A network that a LoRA may be for; its models are of other widths where `match` is "names".

    Attributes:
        match: what agrees: one of `lading.catalog.lora_bases.MATCHES`.
    """

    match: str

    def to_json(self) -> dict[str, Any]:
        """Return the match as JSON can hold it."""
        return {**super().to_json(), "match": self.match}

    def __str__(self) -> str:
        by = f"{self.model_class}, family {self.family}, layout {self.layout}, by {self.match}"
        return f"{by}  as {', '.join(self.models)}" if self.models and self.match in MATCHES[:2] else by


@dataclass(frozen=True)
class LoraPart:
    """What a LoRA changes in one network of a pipeline.

    Attributes:
        component: "denoiser", "text_encoder", "text_encoder_2", ...; "" where nothing tells it.
        bases: the networks that it may be for, the most likely first: those that fit best, all of them.
        modules: pattern, with `#` for every number -> how many modules.
        ranks: all there are, the most frequent first.
        alphas: likewise; none where the file states none, and the scale is 1.
        incomplete: modules that lack one of the two matrices.
    """

    component: str
    bases: tuple[LoraMatch, ...]
    modules: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    incomplete: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON can hold it."""
        return {
            "component": self.component,
            "bases": [base.to_json() for base in self.bases],
            "modules": dict(self.modules),
            "rank": list(self.ranks),
            "alpha": list(self.alphas),
        }

    def __str__(self) -> str:
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas[:_MOST_NAMES]) or "not stated"
        ranks = ", ".join(map(str, self.ranks[:_MOST_NAMES])) or "unknown"
        lines = [
            f"{self.component or 'some network'}  rank {ranks}, alpha {alphas}, {sum(self.modules.values())} modules"
        ]
        lines += [f"  for         {base}" for base in self.bases]
        shown = list(self.modules.items())[:_MOST_PATTERNS]
        lines += [f"  modules     {pattern} x {count}" for pattern, count in shown]
        more = len(self.modules) - len(shown)
        return "\n".join([*lines, f"              and {more} patterns more"] if more else lines)


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        dialect: "kohya", "diffusers", "peft", "comfyui", "xlabs", "bfl" or "diffsynth".
        method: "LoRA", or what it is instead: "DoRA", "LoHa", "LoKr", "OFT", ...
        rest: tensors that are no adapter's.
        claims: what the trainer wrote of the base.
    """

    dialect: str
    method: str
    parts: tuple[LoraPart, ...]
    rest: tuple[str, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> LoraMatch | None:
        """The network that the first of its parts is most likely for."""
        return next((part.bases[0] for part in self.parts if part.bases), None)

    @property
    def made_for(self) -> str:
        """The base in a few words, for a sentence."""
        base = self.base
        if base is None:
            return "a network that is not known"
        if base.models and base.match in MATCHES[:2]:
            more = f" or {len(base.models) - 1} like it" if len(base.models) > 1 else ""
            return f"{base.models[0]}{more} ({base.family})"
        return f"{base.model_class} ({base.family}) of a size that is not known"

    def to_json(self) -> dict[str, Any]:
        """Return what it is as JSON can hold it."""
        return {
            "dialect": self.dialect,
            "method": self.method,
            "parts": [part.to_json() for part in self.parts],
            "rest": list(self.rest),
            "claims": dict(self.claims),
        }

    def __str__(self) -> str:
        lines = [f"{self.method}  dialect {self.dialect}", *map(str, self.parts)]
        lines += [f"  says        {key} = {value}" for key, value in self.claims.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class LoraSettings:
    """What PEFT's config of an adapter says of its scale.

    Attributes:
        alpha: of all modules; None where it is not said.
        alphas: end of a module's name -> its alpha.
        by_root: whether alpha is divided by the rank's square root instead of the rank.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    @property
    def expressions(self) -> tuple[str, ...]:
        """Those of `alphas` that are no names but regular expressions, which PEFT allows and nobody here evaluates."""
        return tuple(end for end in self.alphas if not set(end).isdisjoint(r"\*+?()[]{}|$"))

    def alpha_of(self, module: str) -> float | None:
        """Return the alpha of a module."""
        for end, alpha in self.alphas.items():
            if module == end.removeprefix("^") or (not end.startswith("^") and module.endswith(f".{end}")):
                return alpha
        return self.alpha


def recognise_lora(shapes: Mapping[str, Shape], checkpoint: Checkpoint | None = None, hints: str = "") -> Lora | None:
    """Tell what a LoRA is from its names and shapes; None for what is none.

    Args:
        checkpoint: from which alphas and metadata are read, a few bytes each.
        hints: names that rank published models.
    """
    content = sort_lora(shapes)
    if content is None:
        return None
    settings: Mapping[str, LoraSettings] = {}
    claims: dict[str, str] = {}
    scalars: Mapping[str, float] = {}
    if checkpoint is not None:
        settings, claims = lora_settings(checkpoint), _claims(checkpoint)
        alphas = [name for name, key in content.keys.items() if key.part == "alpha"]
        scalars = read_scalars(checkpoint, alphas)
        hints = " ".join((hints, *claims.values())).lower()
    groups: dict[str, list[LoraModule]] = {}
    for (component, _), module in content.modules.items():
        groups.setdefault(component, []).append(module)
    parts = [_part(component, modules, shapes, scalars, settings, hints) for component, modules in groups.items()]
    if not all(part.bases for part in parts) and registry.load_entry_points():
        parts = [_part(component, modules, shapes, scalars, settings, hints) for component, modules in groups.items()]
    parts.sort(key=lambda part: (part.component != DENOISER, part.component))
    other = [method for method in content.methods if method != LORA]
    return Lora(content.dialect, other[0] if other else LORA, tuple(parts), content.rest, claims)


def _part(
    component: str,
    modules: list[LoraModule],
    shapes: Mapping[str, Shape],
    scalars: Mapping[str, float],
    settings: Mapping[str, LoraSettings],
    hints: str,
) -> LoraPart:
    bases = find_bases(component, Touched.of(modules, shapes), hints)
    ranks = Counter(
        shapes[module.names["down"]][0] for module in modules if "down" in module.names and shapes[module.names["down"]]
    )
    chosen = settings.get(component, settings.get("", LoraSettings()))
    found = (scalars.get(module.names.get("alpha", ""), chosen.alpha_of(module.module)) for module in modules)
    alphas = Counter(alpha for alpha in found if alpha is not None)
    if not component and bases:
        component = bases[0].component if bases[0].component.startswith("text_encoder") else DENOISER
    return LoraPart(
        component,
        bases,
        dict(Counter(pattern_of(module.module) for module in modules)),
        tuple(rank for rank, _ in ranks.most_common()),
        tuple(alpha for alpha, _ in alphas.most_common()),
        tuple(module.module for module in modules if ("down" in module.names) != ("up" in module.names)),
    )


def weight_shape(module: LoraModule, shapes: Mapping[str, Shape]) -> Shape | None:
    """Return the shape of the weight that a pair of matrices is added to; None where they are no pair."""
    if "down" not in module.names or "up" not in module.names:
        return None
    down, up = shapes[module.names["down"]], shapes[module.names["up"]]
    return (up[0], *down[1:]) if len(down) >= 2 and len(up) >= 2 else None


@dataclass(frozen=True)
class Touched:
    """The modules that a LoRA changes in one network, by pattern, as `LoraBase.match` asks for them.

    Attributes:
        dotted: those with dotted names.
        flat: those whose names have `_` for every dot.
    """

    dotted: Mapping[str, BaseModules]
    flat: Mapping[str, BaseModules]

    @classmethod
    def of(cls, modules: Iterable[LoraModule], shapes: Mapping[str, Shape]) -> Touched:
        """Group modules; `shapes` are those of the file's tensors."""
        weights = [(module, weight_shape(module, shapes)) for module in modules]
        return cls(
            modules_by_pattern((module.module, shape) for module, shape in weights if not module.is_flat),
            modules_by_pattern((module.module, shape) for module, shape in weights if module.is_flat),
        )

    def match(self, base: LoraBase) -> str | None:
        """Return which of `MATCHES` holds for a base; None for none of them."""
        matches = [base.match(these, these is self.flat) for these in (self.dotted, self.flat) if these]
        found = [match for match in matches if match is not None]
        return max(found, key=MATCHES.index) if found and len(found) == len(matches) else None


def find_bases(component: str, touched: Touched, hints: str = "") -> tuple[LoraMatch, ...]:
    """Return the networks that a LoRA may be for: those that fit best, all of them."""
    found: dict[str, list[LoraBase]] = {}
    for base in (*registry.registered_lora_bases(), *shipped_lora_bases()):
        if component and component.startswith("text_encoder") != base.component.startswith("text_encoder"):
            continue
        match = touched.match(base)
        if match is not None:
            found.setdefault(match, []).append(base)
    best = next((match for match in MATCHES if match in found), None)
    return () if best is None else tuple(_merged(found[best], best, hints))


def _merged(bases: Iterable[LoraBase], match: str, hints: str) -> Iterator[LoraMatch]:
    """One match for each class and layout; the models that the hints name come first."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for base in bases:
        group = groups.setdefault((base.family, base.component, base.model_class, base.layout), [])
        group += [model for model in base.models if model not in group]

    def unnamed(model: str) -> bool:
        return model.rpartition("/")[2].lower() not in hints

    matches = [LoraMatch(*of, tuple(sorted(models, key=unnamed)), match) for of, models in groups.items()]
    yield from sorted(matches, key=lambda one: all(map(unnamed, one.models)))


def lora_settings(checkpoint: Checkpoint) -> dict[str, LoraSettings]:
    """Return the configs of PEFT that diffusers writes into a file's metadata and PEFT beside it, by component.

    A component of "" is one that is not named.
    """
    embedded = _json(checkpoint.metadata.get("lora_adapter_metadata", ""))
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in embedded.items():
        component, _, name = key.rpartition(".")
        component = component if component.startswith("text_encoder") or not component else DENOISER
        by_component.setdefault(component, {})[name] = value
    if not by_component and (beside := _config_beside(checkpoint)):
        by_component = {"": beside}
    return {component: _settings(values) for component, values in by_component.items()}


def _settings(values: Mapping[str, Any]) -> LoraSettings:
    alphas = values.get("alpha_pattern")
    stated = {str(end): _number(value) for end, value in alphas.items()} if isinstance(alphas, Mapping) else {}
    return LoraSettings(
        _number(values.get("lora_alpha")),
        {end: value for end, value in stated.items() if value is not None},
        values.get("use_rslora") is True,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _claims(checkpoint: Checkpoint) -> dict[str, str]:
    texts = {**_config_beside(checkpoint), **checkpoint.metadata}
    said = {key: " ".join(str(texts[key]).split()) for key in _CLAIMS if texts.get(key) not in (None, "")}
    return {key: text[:_MOST_TEXT] for key, text in said.items()}


def _config_beside(checkpoint: Checkpoint) -> dict[str, Any]:
    """The adapter_config.json that PEFT writes beside its adapter_model.safetensors."""
    first = checkpoint.files[0]
    file = first.parent / "adapter_config.json"
    if not first.name.startswith("adapter_model"):
        return {}
    try:
        return _json(file.read_text()) if file.is_file() and file.stat().st_size < _MOST_JSON else {}
    except (OSError, ValueError):
        return {}


def _json(text: str) -> dict[str, Any]:
    """A JSON object, or nothing where it is none."""
    try:
        found = json.loads(text) if 0 < len(text) < _MOST_JSON else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lora_problems(lora: Lora) -> list[str]:
    """Return what is wrong with a LoRA, or has to be known of it, in words."""
    problems = [f"a {lora.method} in the {lora.dialect} dialect, no network: load it onto one, with lading.load_lora"]
    for part in lora.parts:
        place = part.component or "modules"
        if not part.bases:
            problems.append(f"{place}: no network that is known has such modules")
        elif part.bases[0].match == "some names":
            problems.append(f"{place}: not all modules are those of {part.bases[0].model_class}")
        elif part.bases[0].match == "names":
            problems.append(f"{place}: the widths or the depth are of no published {part.bases[0].model_class}")
        if part.incomplete:
            problems.append(
                f"{place}: {len(part.incomplete)} modules have one matrix of two: {_listed(part.incomplete)}: "
                "the file is incomplete, fetch it again"
            )
    if lora.rest:
        problems.append(f"{len(lora.rest)} tensors are no adapter's: {_listed(lora.rest)}")
    return problems


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
