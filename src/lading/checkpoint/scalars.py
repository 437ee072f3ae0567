"""Single numbers of a checkpoint, read without torch."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from lading.checkpoint.header import FileStamp, TensorInfo
from lading.checkpoint.inventory import Checkpoint

_FORMATS = {
    "float64": "<d",
    "float32": "<f",
    "float16": "<e",
    "int64": "<q",
    "int32": "<i",
    "int16": "<h",
    "int8": "<b",
    "uint8": "<B",
}


def read_scalars(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, float]:
    """Return those of these tensors that hold one number each.

    What holds more or is of another dtype is left out; so is all of a file that is not there, as those of a hub's
    headers are not, or not what it was when its header was read.
    """
    by_file: dict[Path, list[tuple[str, TensorInfo]]] = {}
    for name in names:
        info = checkpoint[name]
        if all(size == 1 for size in info.shape) and (info.dtype in _FORMATS or info.dtype == "bfloat16"):
            by_file.setdefault(info.file, []).append((name, info))
    stamps = {inventory.file: inventory.stamp for inventory in checkpoint.inventories}
    found: dict[str, float] = {}
    for file, infos in by_file.items():
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if FileStamp.of(os.fstat(descriptor)) == stamps[file]:
                found.update((name, _number(os.pread(descriptor, info.end - info.start, info.start), info.dtype))
                             for name, info in infos)  # fmt: skip
        except (OSError, struct.error):
            continue
        finally:
            os.close(descriptor)
    return found


def _number(data: bytes, dtype: str) -> float:
    if dtype == "bfloat16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    return float(struct.unpack(_FORMATS[dtype], data)[0])
