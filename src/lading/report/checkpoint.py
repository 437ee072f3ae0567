"""A checkpoint as text and as JSON."""

from __future__ import annotations

import json

from lading.checkpoint import Checkpoint
from lading.sizes import format_size


def checkpoint_json(checkpoint: Checkpoint) -> str:
    """Return one JSON object with the header's facts; recognition adds its candidates."""
    facts = {
        "hash": checkpoint.hash(),
        "tensors": len(checkpoint),
        "nbytes": checkpoint.nbytes,
        "dtypes": checkpoint.dtypes,
        "files": [str(file) for file in checkpoint.files],
        "metadata": checkpoint.metadata,
        "candidates": [],
        "problems": [],
    }
    return json.dumps(facts)


def checkpoint_text(checkpoint: Checkpoint, tensors: bool = False) -> str:
    """Return the header's facts as lines; with `tensors` also one line for each tensor."""
    lines = [
        f"hash      {checkpoint.hash()}",
        f"tensors   {len(checkpoint)}",
        f"bytes     {checkpoint.nbytes} ({format_size(checkpoint.nbytes)})",
        "dtypes    " + ", ".join(f"{dtype} x {count}" for dtype, count in checkpoint.dtypes.items()),
    ]
    for inventory in checkpoint.inventories:
        size = format_size(inventory.stamp.nbytes)
        lines.append(f"file      {inventory.file} ({inventory.format}, {len(inventory.tensors)} tensors, {size})")
    lines += [f"metadata  {key} = {_clip(value)}" for key, value in sorted(checkpoint.metadata.items())]
    if tensors:
        width = max((len(name) for name in checkpoint), default=0)
        lines += [f"{name:{width}}  {info}" for name, info in checkpoint.items()]
    return "\n".join(lines)


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."
