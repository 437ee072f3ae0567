"""Which network of a bare file is meant, and its tensors under its own names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lading.catalog import Candidate, Identification, Shapes, find_architecture
from lading.catalog.origin import find_origins
from lading.catalog.structure import name_pattern
from lading.checkpoint import Checkpoint
from lading.errors import CheckpointError, IdentificationError
from lading.loading.source import Source

_INSIGNIFICANT = re.compile(r"[^a-z0-9]+")


def choose_candidate(found: Identification, model_class: str | None = None, config_decides: bool = False) -> Candidate:
    """Return the one network that a file holds, or the one of a class.

    Args:
        model_class: library and class.
        config_decides: the caller gives the config, so candidates may differ in it.

    Raises:
        IdentificationError: nothing is recognised, or several networks may be meant.
    """
    file = ", ".join(map(str, found.files))
    fitting = [one for one in found.candidates if one.model_class and model_class in (None, one.model_class)]
    if not fitting:
        raise IdentificationError(f"{file}: {why_unknown(found, model_class)}")
    prefixes = dict.fromkeys(one.prefix for one in fitting)
    if len(prefixes) > 1:
        parts = ", ".join(f"{one.component} ({one.model_class}) under {one.prefix!r}" for one in fitting)
        raise IdentificationError(
            f"{file}: holds several networks, {parts}: give the class, or the candidate of "
            "lading.identify(path).candidates that is meant, in place of the class"
        )
    rivals = likeliest(fitting, [one for one in found.candidates if one.prefix not in prefixes], file)
    if config_decides:
        rivals = list({(one.model_class, one.layout): one for one in reversed(rivals)}.values())
    if len(rivals) > 1:
        raise IdentificationError(
            f"{file}: its tensors fit several networks alike: {'; '.join(map(_summary, rivals))}: give the config, or "
            "the candidate of lading.identify(path).candidates that is meant, in place of the class"
        )
    return rivals[0]


def likeliest(rivals: Iterable[Candidate], company: Iterable[Candidate], hints: str) -> list[Candidate]:
    """Return those of a part's candidates that names of the file, or the other networks beside it, speak for most.

    Args:
        company: what is recognised beside it, in the same file or in files that belong to it.
        hints: paths and names, in which a published model may be named.
    """
    fitting = list(rivals)
    beside = [set(other.models) for other in company if other.models]

    def evidence(one: Candidate) -> tuple[int, int]:
        return named_in(one.models, hints), sum(not models.isdisjoint(one.models) for models in beside)

    most = max(map(evidence, fitting))
    return [one for one in fitting if evidence(one) == most]


def named_in(models: Iterable[str], text: str) -> int:
    """Return how much of a text names one of some published models: the letters of the longest name in it."""
    plain = _plain_text(text)
    names = [_plain_text(model.rpartition("/")[2]) for model in models]
    return max((len(name) for name in names if name in plain), default=0)


def source_of(checkpoint: Checkpoint, candidate: Candidate, others: Iterable[Candidate] = ()) -> Source:
    """Return a candidate's tensors under its own names; what the catalog allows beside a network is left out.

    Args:
        others: further networks of the file.

    Raises:
        CheckpointError: the file holds tensors that the class cannot hold.
        IdentificationError: the candidate has no class.
    """
    file = ", ".join(map(str, checkpoint.files))
    if candidate.model_class is None:
        raise IdentificationError(f"{file}: {candidate.family} has no class in diffusers or transformers to load it as")
    architecture = find_architecture(candidate.family, candidate.model_class)
    longer = {other.prefix for other in others if len(other.prefix) > len(candidate.prefix)}
    own = [
        name
        for name in checkpoint
        if name.startswith(candidate.prefix) and not any(name.startswith(other) for other in longer)
    ]
    infos = {name[len(candidate.prefix) :]: checkpoint[name] for name in own}
    shapes = {name: info.shape for name, info in infos.items()}
    origins = find_origins(architecture.key_map(candidate.layout, shapes), infos)
    extras = architecture.extras(Shapes({name: origin.shape for name, origin in origins.items()}))
    if extras:
        what = "; ".join(f"{name} ({meaning})" for name, meaning in extras.items())
        raise CheckpointError(f"{file}: {candidate.model_class} cannot hold {what}: load it with a class that can")
    beside = name_pattern(architecture.beside)
    return Source(
        checkpoint,
        {name: origin for name, origin in origins.items() if beside is None or not beside.fullmatch(name)},
    )


def merged_config(candidate: Candidate, config: Any) -> Any:
    """Return a candidate's config with what a caller knows better; a config that is no mapping replaces it."""
    if config is None or isinstance(config, Mapping):
        return {**candidate.config, **(config or {})}
    return config


def why_unknown(found: Identification, model_class: str | None = None) -> str:
    """Say why a checkpoint is no network that can be loaded, or not one of a class."""
    if model_class is not None and found.best is not None:
        return f"holds no {model_class}, but {', '.join(str(one.model_class) for one in found.candidates)}"
    reason = "; ".join(found.problems) or "not recognised"
    return f"{reason}: give the class and its config, or see lading.identify(path).explain()"


def _plain_text(text: str) -> str:
    return _INSIGNIFICANT.sub("", text.lower())


def _summary(candidate: Candidate) -> str:
    values = " ".join(f"{key}={candidate.config.get(key)!r}" for key in candidate.unverified)
    name = candidate.models[0] if candidate.models else candidate.layout
    return f"{candidate.model_class} as in {name}{f' ({values})' if values else ''}"
