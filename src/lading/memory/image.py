"""Units as they lie in memory: what is stored as it computes is read in place, the rest is cast, decoded, or put
together of several stretches of the file, on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lading.catalog.origin import Origin
from lading.checkpoint.arena import Arena, Scratch, block_ceiling, block_floor
from lading.checkpoint.dtypes import element_count, is_stored_as, packed_shape
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import Extent
from lading.checkpoint.stretches import find_stretches

_ALIGNMENT = 64


@dataclass(frozen=True)
class Weight:
    """A parameter as a checkpoint holds it.

    Attributes:
        origin: without a change; its runs lie one after another in memory.
        dtype: in which it computes.
    """

    origin: Origin
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """In memory."""
        return sum(element_count(run) for run in self.origin.runs) * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """As torch has it."""
        runs = self.origin.runs
        return packed_shape(runs[0]) if len(runs) == 1 else self.origin.shape

    @property
    def in_place(self) -> bool:
        """Whether its bytes in the file are its bytes in memory."""
        first, *others = self.origin.runs
        if others or first.stride is not None or not is_stored_as(first, self.dtype):
            return False
        return first.start % self.dtype.itemsize == 0


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
        casts: whether any parameter passes through other memory on its way: it is cast, decoded, or put together.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = dict(weights)
        self._reads: list[_Read] = []
        self._places: dict[str, int] = {}
        in_place = {
            name: weight.origin.runs[0] for name, weight in weights.items() if weight.in_place and weight.nbytes
        }
        end = self._lay_out_stretches(in_place)
        self._cast = [name for name, weight in weights.items() if name not in in_place and weight.nbytes]
        for name in self._cast:
            self._places[name] = end
            end += -(-weights[name].nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = block_ceiling(end)
        cast_bytes = sum(run.end - run.start for name in self._cast for run in weights[name].origin.runs)
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
        return next((weight.origin.runs[0].file for weight in self._weights.values()), None)

    def tensors(self, store: Store) -> dict[str, torch.Tensor]:
        """Return the parameters as views of memory that holds the image."""
        found = {}
        for name, weight in self._weights.items():
            if weight.nbytes == 0:
                found[name] = torch.empty(weight.shape, dtype=weight.dtype)
                continue
            start = self._places[name]
            found[name] = store.tensor(weight.dtype, start, start + weight.nbytes).view(weight.shape)
        return found

    def tasks(self, arena: Arena, readers: Mapping[Path, FileReader], scratch: Scratch) -> list[Callable[[], None]]:
        """The reads and casts that fill an arena with the image."""
        tasks: list[Callable[[], None]] = []
        for read in self._reads:
            memory = arena.view(read.place, read.place + read.end - read.start)
            tasks += readers[read.file].tasks([Extent(read.start, memory)])
        infos, targets = self._cast_runs(arena)
        for file in {info.file for info in infos.values()}:
            of_file = {name: info for name, info in infos.items() if info.file == file}
            tasks += readers[file].casts(of_file, targets, scratch)
        return tasks

    def _cast_runs(self, arena: Arena) -> tuple[dict[str, TensorInfo], dict[str, torch.Tensor]]:
        """What is not read in place: the runs, under a name for each, and where the elements of each go."""
        infos: dict[str, TensorInfo] = {}
        targets: dict[str, torch.Tensor] = {}
        for name in self._cast:
            weight, start = self._weights[name], self._places[name]
            for number, run in enumerate(weight.origin.runs):
                end = start + element_count(run) * weight.dtype.itemsize
                infos[f"{name} {number}"] = run
                targets[f"{name} {number}"] = arena.tensor(weight.dtype, start, end)
                start = end
        return infos, targets

    def _lay_out_stretches(self, infos: Mapping[str, TensorInfo]) -> int:
        place = 0
        for stretch in find_stretches(infos):
            read = _Read(stretch.file, block_floor(stretch.start), block_ceiling(stretch.end), place)
            self._reads.append(read)
            for name in stretch.names:
                self._places[name] = place + infos[name].start - read.start
            place += read.end - read.start
        return place
