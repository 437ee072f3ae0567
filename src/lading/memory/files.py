"""The files that weights are read from, as often as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from lading.checkpoint.arena import Arena, Scratch
from lading.checkpoint.header import FileInventory
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import PIECE_BYTES, THREADS
from lading.memory.image import Image, Weight
from lading.memory.rates import Meter


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

    @property
    def casting_bytes(self) -> int:
        """The most that casts take on the way."""
        return THREADS * self._scratch.nbytes

    def tasks(self, image: Image, arena: Arena) -> list[Callable[[], None]]:
        """The reads and casts that fill an arena with an image."""
        tasks = image.tasks(arena, self._readers, self._scratch)
        return [self.meter.metered(task, image.nbytes // len(tasks)) for task in tasks]

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


def _scratch(unit_bytes: int) -> Scratch:
    return Scratch(min(PIECE_BYTES, max(unit_bytes // 8, 1 << 16)))
