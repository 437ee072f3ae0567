"""A checkpoint, and what it was recognised as, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lading.sizes import format_size

if TYPE_CHECKING:
    from lading.catalog import Candidate, Identification
    from lading.checkpoint import Checkpoint

_MOST_FAULTS = 10
_MOST_METADATA = 50


def checkpoint_json(
    checkpoint: Checkpoint, identification: Identification, faults: Mapping[Candidate, list[str]] | None = None
) -> str:
    """Return one JSON object: the header's facts, the candidates and the problems.

    Args:
        faults: what verification found for each candidate; None if it was not asked for.
    """
    candidates = [candidate.to_json() for candidate in identification.candidates]
    for entry, candidate in zip(candidates, identification.candidates, strict=True):
        if faults is not None and candidate in faults:
            entry["faults"] = faults[candidate]
    facts = {
        "hash": identification.hash,
        "tensors": len(checkpoint),
        "nbytes": checkpoint.nbytes,
        "dtypes": checkpoint.dtypes,
        "files": [str(file) for file in checkpoint.files],
        "metadata": checkpoint.metadata,
        "candidates": candidates,
        "lora": identification.lora.to_json() if identification.lora is not None else None,
        "problems": list(identification.problems),
        "quantised": dict(identification.quantised),
    }
    return json.dumps(facts)


def checkpoint_text(
    checkpoint: Checkpoint,
    identification: Identification,
    faults: Mapping[Candidate, list[str]] | None = None,
    tensors: bool = False,
) -> str:
    """Return the header's facts and what the checkpoint is as lines; with `tensors` also one line for each tensor.

    Args:
        faults: what verification found for each candidate; None if it was not asked for.
    """
    lines = [
        f"hash      {identification.hash}",
        f"tensors   {len(checkpoint)}",
        f"bytes     {checkpoint.nbytes} ({format_size(checkpoint.nbytes)})",
        "dtypes    " + ", ".join(f"{dtype} x {count}" for dtype, count in checkpoint.dtypes.items()),
    ]
    for inventory in checkpoint.inventories:
        size = format_size(inventory.stamp.nbytes)
        lines.append(f"file      {inventory.file} ({inventory.format}, {len(inventory.tensors)} tensors, {size})")
    metadata = sorted(checkpoint.metadata.items())
    lines += [f"metadata  {_clip(key)} = {_clip(value)}" for key, value in metadata[:_MOST_METADATA]]
    if len(metadata) > _MOST_METADATA:
        lines.append(f"metadata  and {len(metadata) - _MOST_METADATA} more entries")
    lines += ["", identification.explain()]
    for candidate, found in (faults or {}).items():
        lines += _verdict(candidate, found)
    if tensors:
        width = max((len(name) for name in checkpoint), default=0)
        lines += ["", *(f"{name:{width}}  {info}" for name, info in checkpoint.items())]
    return printable("\n".join(lines))


def printable(text: str) -> str:
    """Return a text in which characters that a terminal would obey, line breaks apart, are written as escapes.

    >>> printable("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(one if one == "\n" or one.isprintable() else ascii(one)[1:-1] for one in text)


def _verdict(candidate: Candidate, faults: list[str]) -> list[str]:
    if not faults:
        return [f"verified  {candidate.model_class}: every name and shape agrees"]
    more = len(faults) - _MOST_FAULTS
    lines = [f"differs   {candidate.model_class}: {fault}" for fault in faults[:_MOST_FAULTS]]
    return [*lines, f"          and {more} more"] if more > 0 else lines


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."
