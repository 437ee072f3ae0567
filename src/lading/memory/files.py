"""The files that weights are read from, as often as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from lading.checkpoint.arena import Arena, Scratch, block_ceiling, block_floor
from lading.checkpoint.header import FileInventory
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import PIECE_BYTES, THREADS, Extent
from lading.memory.image import Image, Weight
from lading.memory.rates import Meter

_ROW_BYTES = 1 << 16
"""That casts of single rows read at once at most: what lies between two rows is not wanted."""


class WeightFiles:
    """Open files, and what they hold for each parameter.

    Attributes:
        meter: of the disk.

    Args:
        weights: parameter name -> where its bytes are.
        unit_bytes: of the units that are read together; casts read pieces that are small beside them.
    """

    def __init__(self, weights: Mapping[str, Weight], inventories: Iterable[FileInventory], unit_bytes: int) -> None:
        self.weights = weights
        self.meter = Meter()
        self._readers = {inventory.file: FileReader(inventory, "stream") for inventory in inventories}
        self._scratch = _scratch(unit_bytes)
        self._row_scratch = Scratch(_ROW_BYTES)

    @property
    def casting_bytes(self) -> int:
        """The most that casts take on the way."""
        return THREADS * self._scratch.nbytes

    def tasks(self, image: Image, arena: Arena) -> list[Callable[[], None]]:
        """The reads and casts that fill an arena with an image."""
        tasks = image.tasks(arena, self._readers, self._scratch)
        return [self.meter.metered(task, image.nbytes // len(tasks)) for task in tasks]

    def row_tasks(self, name: str, spans: Iterable[tuple[int, int]], arena: Arena) -> list[Callable[[], None]]:
        """The reads and casts of rows of a table, to their places in an arena of all of it.

        Args:
            spans: first row, and one past the last, in order.
        """
        weight = self.weights[name]
        (run,) = weight.origin.runs
        rows = weight.shape[0]
        stored, computed = (run.end - run.start) // rows, weight.nbytes // rows
        places = [(first, last, run.start + first * stored, run.start + last * stored) for first, last in spans]
        reader = self._readers[run.file]
        if weight.in_place:
            blocks = _joined((block_floor(start), block_ceiling(end)) for _, _, start, end in places)
            return reader.tasks(Extent(start, arena.view(start, end)) for start, end in blocks)
        infos = {
            str(first): replace(run, shape=(last - first, stored), start=start, end=end)
            for first, last, start, end in places
        }
        targets = {
            str(first): arena.tensor(weight.dtype, first * computed, last * computed) for first, last, _, _ in places
        }
        return reader.casts(infos, targets, self._row_scratch)

    def read(self, name: str) -> torch.Tensor:
        """Read one parameter, on the CPU, in the dtype in which it computes."""
        weight = self.weights[name]
        runs = [self._readers[run.file].tensor(run, weight.dtype) for run in weight.origin.runs]
        if len(runs) == 1:
            return runs[0]
        return torch.cat([run.flatten() for run in runs]).view(weight.shape)

    def close(self) -> None:
        """Close the files; nothing may be read any more."""
        for reader in self._readers.values():
            reader.close()


def casting_bytes(unit_bytes: int) -> int:
    """Return the most that casts of weights in units of a size take on the way."""
    return THREADS * _scratch(unit_bytes).nbytes


def row_casting_bytes() -> int:
    """Return the most that casts of single rows take on the way."""
    return THREADS * Scratch(_ROW_BYTES).nbytes


def _joined(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in stretches:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def _scratch(unit_bytes: int) -> Scratch:
    return Scratch(min(PIECE_BYTES, max(unit_bytes // 8, 1 << 16)))
