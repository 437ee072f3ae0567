"""Units as they lie in memory: what is stored as it computes is read in place, the rest is cast on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lading.checkpoint.arena import Arena, Scratch, block_ceiling, block_floor
from lading.checkpoint.dtypes import packed_shape, torch_dtype_of
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import Extent
from lading.checkpoint.stretches import find_stretches

_ALIGNMENT = 64


@dataclass(frozen=True)
class Weight:
    """A parameter as a checkpoint holds it.

    Attributes:
        dtype: in which it computes.
    """

    info: TensorInfo
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """In memory."""
        return (self.info.end - self.info.start) // torch_dtype_of(self.info).itemsize * self.dtype.itemsize

    @property
    def in_place(self) -> bool:
        """Whether its bytes in the file are its bytes in memory."""
        stored = torch_dtype_of(self.info)
        return stored == self.dtype and self.info.start % stored.itemsize == 0 and self.info.stride is None


class Store(Protocol):
    """Memory for one unit at a time, at a place that stays."""

    def tensor(self, dtype: torch.dtype, start: int, end: int) -> torch.Tensor:
        """Return the bytes from `start` to `end` as a flat tensor."""

    def discard(self) -> None:
        """Give the memory back until something is brought here again; tensors of it stay, without values."""


@dataclass(frozen=True)
class _Read:
    """Bytes of a file, block by block, and where they go in the image."""

    file: Path
    start: int
    end: int
    place: int


class Image:
    """The memory layout of one unit's parameters, from offset 0 of a block on.

    Attributes:
        nbytes: a multiple of the block.
        stored_bytes: that are read for it.
        casts: whether any parameter needs memory to be cast in.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = dict(weights)
        self._reads: list[_Read] = []
        self._places: dict[str, int] = {}
        in_place = {name: weight.info for name, weight in weights.items() if weight.in_place and weight.nbytes}
        end = self._lay_out_stretches(in_place)
        self._cast = {name: weight.info for name, weight in weights.items() if name not in in_place and weight.nbytes}
        for name in self._cast:
            self._places[name] = end
            end += -(-weights[name].nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = block_ceiling(end)
        cast_bytes = sum(info.end - info.start for info in self._cast.values())
        self.stored_bytes = sum(read.end - read.start for read in self._reads) + cast_bytes
        self.casts = bool(self._cast)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(self._weights)

    @property
    def name(self) -> str:
        """Of the first parameter; empty without any."""
        return next(iter(self._weights), "")

    @property
    def file(self) -> Path | None:
        """That holds the first parameter."""
        return next((weight.info.file for weight in self._weights.values()), None)

    def tensors(self, store: Store) -> dict[str, torch.Tensor]:
        """Return the parameters as views of memory that holds the image."""
        found = {}
        for name, weight in self._weights.items():
            shape = packed_shape(weight.info)
            if weight.nbytes == 0:
                found[name] = torch.empty(shape, dtype=weight.dtype)
                continue
            start = self._places[name]
            found[name] = store.tensor(weight.dtype, start, start + weight.nbytes).view(shape)
        return found

    def tasks(self, arena: Arena, readers: Mapping[Path, FileReader], scratch: Scratch) -> list[Callable[[], None]]:
        """The reads and casts that fill an arena with the image."""
        tasks: list[Callable[[], None]] = []
        for read in self._reads:
            memory = arena.view(read.place, read.place + read.end - read.start)
            tasks += readers[read.file].tasks([Extent(read.start, memory)])
        tensors = self.tensors(arena) if self._cast else {}
        for file in {info.file for info in self._cast.values()}:
            infos = {name: info for name, info in self._cast.items() if info.file == file}
            tasks += readers[file].casts(infos, tensors, scratch)
        return tasks

    def _lay_out_stretches(self, infos: Mapping[str, TensorInfo]) -> int:
        place = 0
        for stretch in find_stretches(infos):
            read = _Read(stretch.file, block_floor(stretch.start), block_ceiling(stretch.end), place)
            self._reads.append(read)
            for name in stretch.names:
                self._places[name] = place + infos[name].start - read.start
            place += read.end - read.start
        return place
