"""Stored bytes to tensors: views of the memory that they were read into, or casts, piece by piece.

A span is a stretch of the file of at most one piece. A reading thread fetches it whole and casts its parts into their
tensors while other threads fetch the next spans: besides the result, memory holds one span for each thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from lading.checkpoint.arena import Arena
from lading.checkpoint.dtypes import packed_shape, torch_dtype_of
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.mapping import FileMapping
from lading.checkpoint.reading import PIECE_BYTES

_ALIGNMENT = 64
_SERIAL_ELEMENTS = (1 << 15) - 64
"""So few that torch copies them in the calling thread: the reading threads are the parallelism."""


@dataclass(frozen=True)
class Part:
    """Elements of one tensor that lie in one span.

    Attributes:
        start: offset of the first byte in the file.
        end: offset one past the last.
        dtype: as stored.
        target: flat, one element for each stored one.
    """

    start: int
    end: int
    dtype: torch.dtype
    target: torch.Tensor


@dataclass(frozen=True)
class Span:
    """A stretch of the file and the parts of tensors in it, in the file's order."""

    parts: tuple[Part, ...]

    @property
    def start(self) -> int:
        return self.parts[0].start

    @property
    def end(self) -> int:
        return self.parts[-1].end


def stored_tensor(info: TensorInfo, memory: Arena | FileMapping) -> torch.Tensor:
    """Return a tensor as it is stored: a view of memory that holds the file's bytes, a copy where it is misaligned."""
    dtype, shape = torch_dtype_of(info), packed_shape(info)
    if info.start == info.end:
        return torch.empty(shape, dtype=dtype)
    flat = stored_elements(memory, dtype, info.start, info.end)
    return flat.view(shape) if info.stride is None else flat.as_strided(shape, info.stride)


def stored_elements(memory: Arena | FileMapping, dtype: torch.dtype, start: int, end: int) -> torch.Tensor:
    """Return the elements in a stretch of memory, flat: a view, or a copy where they are misaligned."""
    if start % dtype.itemsize:
        return memory.tensor(torch.uint8, start, end).clone().view(dtype)
    return memory.tensor(dtype, start, end)


def cast_targets(infos: Mapping[str, TensorInfo], dtypes: Mapping[str, torch.dtype | None]) -> dict[str, torch.Tensor]:
    """Return tensors for the results of casts, not yet filled: views of one arena."""
    places: dict[str, tuple[torch.dtype, int, int]] = {}
    end = 0
    for name, info in infos.items():
        dtype = dtypes[name] or torch_dtype_of(info)
        nbytes = (info.end - info.start) // torch_dtype_of(info).itemsize * dtype.itemsize
        places[name] = (dtype, end, end + nbytes)
        end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    arena = Arena(0, end)
    return {name: arena.tensor(*place).view(packed_shape(infos[name])) for name, place in places.items()}


def cut_spans(
    infos: Mapping[str, TensorInfo], targets: Mapping[str, torch.Tensor], piece_bytes: int = PIECE_BYTES
) -> list[Span]:
    """Cut tensors, in the file's order, into spans of at most so many bytes."""
    spans: list[Span] = []
    parts: list[Part] = []
    for part in _parts(infos, targets, piece_bytes):
        if parts and part.end - parts[0].start > piece_bytes:
            spans.append(Span(tuple(parts)))
            parts = []
        parts.append(part)
    return [*spans, Span(tuple(parts))] if parts else spans


def cast_span(span: Span, memory: Arena | FileMapping, start: int) -> None:
    """Cast the parts of a span into their targets.

    Args:
        memory: holds the file's bytes from `start` on.
    """
    for part in span.parts:
        copy_serially(part.target, stored_elements(memory, part.dtype, part.start - start, part.end - start))


def copy_serially(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a flat tensor into another, with a cast, in the calling thread alone."""
    for first in range(0, source.numel(), _SERIAL_ELEMENTS):
        target[first : first + _SERIAL_ELEMENTS].copy_(source[first : first + _SERIAL_ELEMENTS])


def _parts(infos: Mapping[str, TensorInfo], targets: Mapping[str, torch.Tensor], piece_bytes: int) -> Iterator[Part]:
    for name in sorted(infos, key=lambda name: infos[name].start):
        info, flat = infos[name], targets[name].view(-1)
        dtype = torch_dtype_of(info)
        step = piece_bytes // dtype.itemsize
        for first in range(0, flat.numel(), step):
            part = flat[first : first + step]
            start = info.start + first * dtype.itemsize
            yield Part(start, start + part.numel() * dtype.itemsize, dtype, part)
