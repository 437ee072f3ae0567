"""What shapes leave open in a config: decided by the published models, or by the config.json of the network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lading.catalog.architecture import Architecture
from lading.catalog.identification import Candidate
from lading.catalog.shapes import Shapes
from lading.checkpoint.inventory import Checkpoint


def variants(
    architecture: Architecture, config: Mapping[str, Any], shapes: Shapes
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return the published models that these shapes may be, grouped by what shapes cannot tell, with whole configs."""
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
        elif plain(value) != plain(other):
            return False
    return True


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a config, or of one inside it, by its dotted name; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def with_configs(candidates: list[Candidate], checkpoint: Checkpoint) -> tuple[list[Candidate], list[str]]:
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
        if key in config and key not in chosen.unverified and plain(config[key]) != plain(value)
    ]
    told = {key: config[key] for key in chosen.unverified if key in config}
    others = {key: value for key, value in config.items() if not key.startswith("_") and key not in chosen.config}
    left = {key: value for key, value in chosen.unverified.items() if key not in told}
    decided = replace(chosen, config={**others, **chosen.config, **told}, unverified=left)
    rivals = [one for one in candidates if one.prefix != chosen.prefix]
    return [decided, *rivals], problems


def plain(value: Any) -> Any:
    """Return a config's value with tuples for lists, as configs from anywhere are compared."""
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value
