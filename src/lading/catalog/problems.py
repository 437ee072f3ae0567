"""What is wrong with a checkpoint, or uncertain, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lading.catalog.change import Shape
from lading.catalog.identification import Candidate
from lading.catalog.normalise import Part
from lading.catalog.shapes import UnknownSizeError
from lading.catalog.structure import Fit
from lading.catalog.variants import plain

_LAYER_PATTERNS = 4
"""A numbered list whose elements hold this many patterns is a list of layers, whose numbers have no holes."""


def ambiguities(candidates: Iterable[Candidate]) -> list[str]:
    """Name the networks that the tensors of a prefix fit alike, and in what they differ."""
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
                    if any(plain(other.config.get(key)) != plain(value) for other in rivals)
                }
                what = " ".join(f"{key}={value!r}" for key, value in differing.items() if key in rival.unverified)
                if any(other.layout != rival.layout for other in rivals):
                    what = f"{what} in layout {rival.layout!r}".strip()
                texts.append(f"{rival.models[0] if rival.models else rival.model_class}{f' ({what})' if what else ''}")
            problems.append(
                f"ambiguous: these tensors fit {' and '.join(texts)}: name the model, or keep its config.json"
            )
    return problems


def holes(view: Part) -> list[str]:
    """Name layers that are missing between others, as a partial download leaves them."""
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


def left_over(part: Part) -> str:
    """Say that a part of a file is of no network."""
    place = f"under {part.prefix!r}" if part.prefix else "beside the networks"
    names = ", ".join(list(part.shapes)[:3]) + (", ..." if len(part.shapes) > 3 else "")
    return f"{len(part.shapes)} tensors {place} are of no network that is known: {names}"


def missing_shards(missing: tuple[str, ...]) -> str:
    """List files that are not there."""
    return f"{len(missing)} shards are missing: {', '.join(missing)}: fetch them"


def why_unknown(shapes: Mapping[str, Shape], nearest: tuple[Fit, ...]) -> str:
    """Say why nothing is recognised."""
    if not shapes:
        return "no tensors: an empty checkpoint"
    if nearest and nearest[0].score > 0.5:
        return f"not recognised: nearest is {nearest[0].signature.model_class}; see what is missing and extra"
    return "not recognised: no known architecture has names like these; `register_architecture` adds one"
