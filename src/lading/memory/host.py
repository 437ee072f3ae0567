"""Host memory as a home: the CPU computes from where the disk reads to."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from lading.checkpoint.arena import Arena
from lading.checkpoint.reading import Reading
from lading.memory.files import WeightFiles
from lading.memory.image import Image, Store


class HostHome:
    """See `lading.memory.home.Home`."""

    device = torch.device("cpu")
    copies = False
    workspace_bytes = 0
    host_bytes = 0
    copy_rate = None

    def __init__(self, files: WeightFiles) -> None:
        self._files = files

    @property
    def casting_bytes(self) -> int:
        return self._files.casting_bytes

    def store(self, nbytes: int) -> Arena:
        return Arena(0, nbytes)

    def host(self, images: Iterable[Image]) -> None:
        """There is no other memory to keep them in."""

    def reads(self, image: Image) -> bool:
        return True

    def bring(self, image: Image, store: Store) -> Reading:
        assert isinstance(store, Arena)
        return Reading(self._files.tasks(image, store))

    def moment(self) -> float:
        return time.perf_counter()

    def forget(self) -> None:
        """There is none."""

    def rest(self) -> None:
        """Reads take nothing beside the stores."""

    def close(self) -> None:
        """The stores go with their tensors."""
