"""Stretches: tensors that lie close together in a file and are read, or copied, as one. Plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lading.checkpoint.header import TensorInfo

GAP_BYTES = 64 << 10
"""Gaps between wanted tensors up to this size are read along, as a read of its own would cost more."""


@dataclass(frozen=True)
class Stretch:
    """Bytes of one file and the tensors in them.

    Attributes:
        names: of the tensors, in the file's order.
        start: offset of the first byte in the file.
        end: offset one past the last.
    """

    names: tuple[str, ...]
    file: Path
    start: int
    end: int


def find_stretches(
    infos: Mapping[str, TensorInfo], gap_bytes: int = GAP_BYTES, most_bytes: int | None = None
) -> Iterator[Stretch]:
    """Group tensors into stretches, file by file and in each file's order; tensors without bytes are in none.

    Args:
        gap_bytes: tensors further apart than this are in different stretches.
        most_bytes: of a stretch of several tensors; None for any length.
    """
    names: list[str] = []
    file, start, end = Path(), 0, 0
    for name, info in sorted(infos.items(), key=lambda item: (str(item[1].file), item[1].start, item[1].end)):
        if info.start == info.end:
            continue
        together = info.file == file and info.start - end <= gap_bytes
        if names and not (together and (most_bytes is None or max(end, info.end) - start <= most_bytes)):
            yield Stretch(tuple(names), file, start, end)
            names = []
        if not names:
            file, start, end = info.file, info.start, info.end
        names.append(name)
        end = max(end, info.end)
    if names:
        yield Stretch(tuple(names), file, start, end)
