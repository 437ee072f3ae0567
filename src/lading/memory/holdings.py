"""What a module's weights take where it computes, store by store."""

from __future__ import annotations

import time

import torch

from lading import events
from lading.memory.image import Store


class Holdings:
    """Counts the stores of a module that hold memory, and tells whoever records of every change."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._taken: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """That are held now."""
        return sum(list(self._taken.values()))

    def take(self, store: Store, nbytes: int) -> None:
        """Count a store that something is brought to."""
        if id(store) not in self._taken:
            self._taken[id(store)] = nbytes
            self._tell()

    def give_back(self, store: Store) -> None:
        """Discard a store."""
        store.discard()
        if self._taken.pop(id(store), 0):
            self._tell()

    def _tell(self) -> None:
        if events.wanted():
            now = time.perf_counter()
            events.tell("held", type(self._module).__name__, self._module, now, now, self.nbytes)
