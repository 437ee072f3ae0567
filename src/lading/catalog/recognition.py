"""From a path to what the checkpoint is: hash, structure, config from shapes. Plain Python; no data is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lading.catalog import registry
from lading.catalog.architecture import Architecture
from lading.catalog.change import Shape
from lading.catalog.explanation import pattern_list
from lading.catalog.hashes import KnownModel, known_models
from lading.catalog.identification import Candidate, Identification
from lading.catalog.lora import lora_problems, recognise_lora
from lading.catalog.normalise import Part, divide, sort_content, unwrap, without_shared_prefix
from lading.catalog.shapes import Shapes, UnknownSizeError
from lading.catalog.structure import Fit, Signature, patterns_of, shipped_signatures
from lading.checkpoint.inventory import Checkpoint, hash_layout, open_checkpoint
from lading.checkpoint.quantised import find_weights
from lading.errors import CheckpointError

if TYPE_CHECKING:
    from lading.checkpoint.files import CheckpointPath

_NEAREST = 3
_PARTIAL_SCORE = 0.2
_PARTIAL_PATTERNS = 8
"""So much must be there of a file whose other tensors are missing, or it might be anything."""
_NEAR_THE_BEST = 0.8
"""What is left of a file may fit several networks; those of about this share of the best score are all returned."""
_LAYER_PATTERNS = 4
"""A numbered list whose elements hold this many patterns is a list of layers, whose numbers have no holes."""


@dataclass(frozen=True)
class _Finding:
    """What one part turned out to be."""

    part: Part
    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]
    fits: tuple[Fit, ...]
    complete: bool


def identify(path: CheckpointPath) -> Identification:
    """Tell what a checkpoint is: family, class, config, layout; from its header alone, offline and without torch.

    Where the tensors fit several models alike, all are candidates; where none fits, `.explain()` says what comes near
    and what differs.

    Args:
        path: a file, a list of files, a folder, a glob or an `index.json`; shards may be missing.

    Raises:
        CheckpointError: there is no such file, or it is damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> lading.identify(lading.shipped_model() / "vae").best.model_class
    'diffusers.AutoencoderKL'
    """
    return identify_checkpoint(open_checkpoint(path, complete=False))


def identify_checkpoint(checkpoint: Checkpoint, model_class: str | None = None) -> Identification:
    """Tell what an opened checkpoint is, or what it is as a network of one class; see `identify`."""
    weights = find_weights(checkpoint)
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    found = _identify(shapes, checkpoint.hash(), _hints(checkpoint), checkpoint, model_class)
    if not weights.shapes_known and found.lora is None:
        found = _without_shapes(found, shapes, checkpoint.containers, model_class)
    candidates, contradictions = _with_configs(list(found.candidates), checkpoint)
    problems = [_missing_shards(checkpoint.missing)] if checkpoint.missing else []
    problems += [f"quantised: {remedy}" for remedy in weights.remedies]
    problems += [*found.problems, *contradictions, *_ambiguities(candidates)]
    return replace(
        found,
        files=checkpoint.files,
        candidates=tuple(candidates),
        problems=tuple(problems),
        quantised=weights.schemes,
    )


def identify_tensors(shapes: Mapping[str, Shape]) -> Identification:
    """Tell what a state dict is, given its names and shapes; see `identify`."""
    found = _identify(shapes, hash_layout(shapes), "")
    return replace(found, problems=(*found.problems, *_ambiguities(found.candidates)))


def _without_shapes(
    found: Identification, shapes: Mapping[str, Shape], containers: tuple[str, ...], model_class: str | None
) -> Identification:
    """Name the networks of a file whose shapes are not those of its network: by names, without their configs."""
    candidates = []
    for part in divide(Shapes(shapes), containers):
        for view in unwrap(part):
            patterns = patterns_of(view.shapes)
            for signature in _signatures(model_class):
                if signature.fit(patterns).is_full:
                    component = registry.find_architecture(signature.family, signature.model_class).component
                    candidate = Candidate(
                        signature.family, component, signature.model_class, {}, signature.layout, "structure"
                    )
                    candidates.append(replace(candidate, prefix=view.prefix))
    return replace(found, candidates=tuple(candidates) or found.candidates)


def _identify(
    shapes: Mapping[str, Shape],
    digest: str,
    hints: str,
    checkpoint: Checkpoint | None = None,
    model_class: str | None = None,
) -> Identification:
    problems = []
    known = known_models().get(digest)
    if known is not None and any("," in name or ":" in name for name in shapes):
        problems.append("the hash is a published one, but names with commas or colons can imitate any: it is not used")
        known = None
    lora = recognise_lora(shapes, checkpoint, hints)
    if lora is not None:
        return Identification((), digest, (), (*problems, *lora_problems(lora)), known, lora=lora)
    content = sort_content(shapes)
    for scheme, count in content.companions.items():
        problems.append(f"quantised: {count} tensors are what {scheme} adds; shapes of quantised weights may differ")
    findings = _findings(content.whole, () if checkpoint is None else checkpoint.containers, model_class)
    candidates = _ranked([one for finding in findings for one in finding.candidates], known, hints)
    problems += [problem for finding in findings for problem in finding.problems]
    if candidates:
        problems += [_left_over(finding.part) for finding in findings if not finding.candidates]
    if known is not None and candidates:
        candidates = [replace(candidate, match="hash") for candidate in candidates]
    elif known is not None:
        problems.append(f"{known}: known, no network class in diffusers or transformers takes these tensors")
        candidates = [Candidate(name, "", None, {}, "", "hash") for name in known.names]
        return Identification((), digest, tuple(candidates), tuple(problems), known)
    fits = [fit for finding in findings if not finding.complete for fit in finding.fits]
    nearest = tuple(sorted(fits, key=lambda fit: fit.score, reverse=True)[:_NEAREST])
    if not candidates:
        problems.append(_why_unknown(shapes, nearest))
    return Identification((), digest, tuple(candidates), tuple(problems), known, nearest)


def _findings(whole: Shapes, containers: tuple[str, ...], model_class: str | None) -> list[_Finding]:
    """What is in the file; installed packages are asked where nothing that is known already fits."""
    findings = _findings_in_parts(whole, containers, model_class)
    if not any(finding.complete for finding in findings) and registry.load_entry_points():
        return _findings_in_parts(whole, containers, model_class)
    return findings


def _findings_in_parts(whole: Shapes, containers: tuple[str, ...], model_class: str | None) -> list[_Finding]:
    """Look at the parts that the prefixes of usual repackagings make, then at the file as one network."""
    parts = divide(whole, containers)
    findings = [_look_at(part, model_class) for part in parts]
    if any(finding.complete for finding in findings) or not any(part.prefix for part in parts):
        return findings
    first = _look_at(Part("", whole), model_class)
    if first.candidates:
        return [first]
    return findings if any(finding.candidates for finding in findings) else [*findings, first]


def _signatures(model_class: str | None) -> Iterator[Signature]:
    for signature in (*shipped_signatures(), *registry.registered_signatures()):
        if model_class in (None, signature.model_class):
            yield signature


def _look_at(part: Part, model_class: str | None) -> _Finding:
    """Compare a part, with and without its wrapping prefixes, with all signatures, or with those of a class."""
    fits: list[Fit] = []
    partial: list[tuple[Fit, Part]] = []
    reasons: list[str] = []
    for view in unwrap(part):
        patterns = patterns_of(view.shapes)
        these = [signature.fit(patterns) for signature in _signatures(model_class)]
        finding, why_not = _complete_finding(part, view, these)
        if finding is not None:
            return finding
        reasons += why_not
        fits += these
        if len(patterns) >= _PARTIAL_PATTERNS:
            partial += [(fit, view) for fit in these if fit.score >= _PARTIAL_SCORE and not fit.extra]
    for view in without_shared_prefix(part):
        patterns = patterns_of(view.shapes)
        finding, _ = _complete_finding(part, view, [one.fit(patterns) for one in _signatures(model_class)])
        if finding is not None:
            return finding
    fits = sorted(fits, key=lambda fit: fit.score, reverse=True)[:_NEAREST]
    return _partial_finding(part, partial, fits, reasons)


def _complete_finding(part: Part, view: Part, fits: list[Fit]) -> tuple[_Finding | None, list[str]]:
    """What a part is as a whole network, and why it is not what its names say."""
    candidates: list[Candidate] = []
    problems: list[str] = []
    reasons: list[str] = []
    most = 0
    for fit in sorted(fits, key=lambda fit: fit.common, reverse=True):
        if fit.common < most:
            break  # a network that leaves more tensors beside it than another is not meant
        if fit.is_full:
            found, remarks, reason = _resolve(fit.signature, view)
            most = fit.common if found else most
            candidates += found
            problems += [remark for remark in remarks if remark not in problems]
            reasons += [reason] if reason else []
    if not candidates:
        return None, reasons
    return _Finding(part, tuple(candidates), (*problems, *_holes(view)), (), True), reasons


def _partial_finding(part: Part, partial: list[tuple[Fit, Part]], fits: list[Fit], reasons: list[str]) -> _Finding:
    """What a file with missing tensors is: the networks that know all that is there."""
    candidates: list[Candidate] = []
    problems: list[str] = list(dict.fromkeys(reasons))
    top = max((fit.score for fit, _ in partial), default=0.0)
    for fit, view in partial:
        if fit.score < _NEAR_THE_BEST * top or not fit.missing:
            continue
        found, remarks, reason = _resolve(fit.signature, view)
        if not found and reason:
            signature = fit.signature
            architecture = registry.find_architecture(signature.family, signature.model_class)
            found = (
                Candidate(
                    signature.family, architecture.component, signature.model_class, {}, signature.layout, "structure"
                ),
            )
            remarks = [reason]
        new = [one for one in found if not _same_network(one, candidates)]
        candidates += new
        if new:
            problems.append(f"{fit.signature.model_class}: tensors are missing: {pattern_list(fit.missing)}")
            problems += [remark for remark in (*remarks, *_holes(view)) if remark not in problems]
    return _Finding(part, tuple(candidates), tuple(problems), tuple(fits), False)


def _same_network(one: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether another layout of the same file has led to this candidate before."""
    return any((one.model_class, one.config) == (other.model_class, other.config) for other in others)


def _resolve(signature: Signature, view: Part) -> tuple[tuple[Candidate, ...], list[str], str]:
    """Return the candidates of a signature, remarks on them, and why there are none."""
    architecture = registry.find_architecture(signature.family, signature.model_class)
    try:
        key_map = architecture.key_map(signature.layout, view.shapes)
        shapes = view.shapes if key_map is None else Shapes(key_map.all_shapes(view.shapes))
        config = architecture.infer_config(shapes)
        extras = architecture.extras(shapes)
    except UnknownSizeError as error:
        return (), [], f"{signature.model_class}: the config cannot be told without {error.args[0]}"
    except CheckpointError as error:
        return (), [], f"{signature.model_class}, layout {signature.layout}: {error}"
    remarks = [f"{name}: {what}, which {signature.model_class} cannot hold" for name, what in extras.items()]
    candidates = tuple(
        Candidate(
            signature.family,
            architecture.component,
            signature.model_class,
            whole,
            signature.layout,
            "structure",
            {key: _at(whole, key) for key in architecture.unverified},
            view.prefix,
            models,
        )
        for models, whole in _variants(architecture, config, shapes)
    )
    return candidates, remarks, ""


def _variants(
    architecture: Architecture, config: Mapping[str, Any], shapes: Shapes
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """The published models that these shapes may be, grouped by what shapes cannot tell, with whole configs."""
    config = _with_defaults(config, architecture.unverified)
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for name, published in architecture.published.items():
        if not _agree(published, config, architecture.unverified) or not architecture.fits(published, shapes):
            continue
        whole = {**config, **published}
        for names, other in groups:
            if other == whole:
                names.append(name)
                break
        else:
            groups.append(([name], whole))
    return [(tuple(names), whole) for names, whole in groups] or [((), config)]


def _with_defaults(config: Mapping[str, Any], unverified: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what shapes cannot tell, as far as a value is known that is not the class's own default."""
    whole = dict(config)
    for key, value in unverified.items():
        part, dot, inner = key.partition(".")
        if value is None:
            continue
        if not dot:
            whole.setdefault(key, value)
        elif inner not in whole.get(part, {}):
            whole[part] = {**whole.get(part, {}), inner: value}
    return whole


def _agree(published: Mapping[str, Any], config: Mapping[str, Any], unverified: Iterable[str], at: str = "") -> bool:
    """Whether a published config says what shapes tell."""
    for key, value in config.items():
        other = published.get(key)
        if f"{at}{key}" in unverified:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if not _agree(other, value, unverified, f"{at}{key}."):
                return False
        elif _plain(value) != _plain(other):
            return False
    return True


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _ranked(candidates: list[Candidate], known: KnownModel | None, hints: str) -> list[Candidate]:
    """The candidates of each prefix by what names one of their models: path and metadata, the table of hashes, and the
    other networks in the file."""
    order = list(dict.fromkeys(candidate.prefix for candidate in candidates))
    elsewhere = {one: [other.models for other in candidates if other.prefix != one.prefix] for one in candidates}

    def doubt(candidate: Candidate) -> tuple[int, ...]:
        told = known is not None and known.repository in candidate.models
        named = any(model.rpartition("/")[2].lower() in hints for model in candidate.models)
        company = any(not set(models).isdisjoint(candidate.models) for models in elsewhere[candidate])
        return order.index(candidate.prefix), not named, not told, not company

    return sorted(candidates, key=doubt)


def _hints(checkpoint: Checkpoint) -> str:
    texts = [str(file) for file in checkpoint.files[:1]]
    texts += [value for value in checkpoint.metadata.values() if len(value) < 1000]
    return " ".join(texts).lower()


def _with_configs(candidates: list[Candidate], checkpoint: Checkpoint) -> tuple[list[Candidate], list[str]]:
    """Let the config.json of a network decide what shapes leave open, and say where it contradicts them."""
    problems = []
    for inventory in checkpoint.inventories:
        for prefix, config in inventory.configs.items():
            own = [one for one in candidates if one.prefix == prefix]
            decided, found = _decided(own, config, f"{inventory.file}: {prefix}config.json")
            candidates = [*decided, *(one for one in candidates if one not in own)]
            problems += found
    file = checkpoint.files[0].parent / "config.json"
    try:
        sibling = json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size < 1_000_000 else None
    except (OSError, ValueError, RecursionError):
        sibling = None
    candidates, found = _decided(candidates, sibling, str(file))
    return candidates, [*problems, *found]


def _decided(candidates: list[Candidate], config: Any, where: str) -> tuple[list[Candidate], list[str]]:
    """Keep of the candidates of a prefix the one that a config is of, with what it says."""
    if not isinstance(config, dict):
        return candidates, []
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else ())]
    fitting = [one for one in candidates if one.model_class and one.model_class.rpartition(".")[2] in names]
    if not fitting:
        return candidates, []
    chosen = fitting[0]
    problems = [
        f"{where}: says {key} {config[key]!r}, the tensors say {value!r}"
        for key, value in chosen.config.items()
        if key in config and key not in chosen.unverified and _plain(config[key]) != _plain(value)
    ]
    told = {key: config[key] for key in chosen.unverified if key in config}
    others = {key: value for key, value in config.items() if not key.startswith("_") and key not in chosen.config}
    left = {key: value for key, value in chosen.unverified.items() if key not in told}
    decided = replace(chosen, config={**others, **chosen.config, **told}, unverified=left)
    rivals = [one for one in candidates if one.prefix != chosen.prefix]
    return [decided, *rivals], problems


def _ambiguities(candidates: Iterable[Candidate]) -> list[str]:
    problems = []
    everyone = list(candidates)
    for prefix in dict.fromkeys(candidate.prefix for candidate in everyone):
        rivals = [one for one in everyone if one.prefix == prefix and one.model_class is not None]
        if len(rivals) > 1:
            texts = []
            for rival in rivals:
                differing = {
                    key: value
                    for key, value in rival.config.items()
                    if any(_plain(other.config.get(key)) != _plain(value) for other in rivals)
                }
                what = " ".join(f"{key}={value!r}" for key, value in differing.items() if key in rival.unverified)
                if any(other.layout != rival.layout for other in rivals):
                    what = f"{what} in layout {rival.layout!r}".strip()
                texts.append(f"{rival.models[0] if rival.models else rival.model_class}{f' ({what})' if what else ''}")
            problems.append(
                f"ambiguous: these tensors fit {' and '.join(texts)}: name the model, or keep its config.json"
            )
    return problems


def _holes(view: Part) -> list[str]:
    """Layers that are missing between others, as a partial download leaves them."""
    lists: dict[str, set[str]] = {}
    for pattern in view.shapes.by_pattern:
        head, mark, tail = pattern.partition(".#.")
        if mark and "#" not in head:
            lists.setdefault(head, set()).add(tail)
    problems = []
    for head, tails in lists.items():
        if len(tails) < _LAYER_PATTERNS:
            continue
        try:
            numbers = view.shapes.numbers(head)
        except UnknownSizeError as error:
            problems.append(f"not {error.args[0]}")
            continue
        absent = sorted(set(range(numbers[-1])) - set(numbers))
        if absent:
            listed = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
            problems.append(f"{head}: layers {listed} are missing: the download is incomplete, fetch the other shards")
    return problems


def _left_over(part: Part) -> str:
    place = f"under {part.prefix!r}" if part.prefix else "beside the networks"
    names = ", ".join(list(part.shapes)[:3]) + (", ..." if len(part.shapes) > 3 else "")
    return f"{len(part.shapes)} tensors {place} are of no network that is known: {names}"


def _missing_shards(missing: tuple[str, ...]) -> str:
    return f"{len(missing)} shards are missing: {', '.join(missing)}: fetch them"


def _why_unknown(shapes: Mapping[str, Shape], nearest: tuple[Fit, ...]) -> str:
    if not shapes:
        return "no tensors: an empty checkpoint"
    if nearest and nearest[0].score > 0.5:
        return f"not recognised: nearest is {nearest[0].signature.model_class}; see what is missing and extra"
    return "not recognised: no known architecture has names like these; `register_architecture` adds one"
