"""Where a module computes: memory for its weights, and how they come there. A new kind of home is one new file here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from lading.events import Moment
from lading.memory.image import Image, Store


class Arrival(Protocol):
    """Weights on their way. The memory that they go to must not be used before `wait` returns."""

    @property
    def done(self) -> bool:
        """Whether they have arrived, or never will."""

    def wait(self) -> None:
        """Let what this thread computes from now on find them.

        Raises:
            CheckpointError: they cannot be read.
        """

    def cancel(self) -> None:
        """Stop, and return when nothing is written to the memory any more."""


class Home(Protocol):
    """Memory that a module computes from.

    Attributes:
        device: as torch knows it.
        copies: whether weights come through host memory, over a bus.
        casting_bytes: what casts of arriving weights take here at most.
        workspace_bytes: what libraries keep here beside tensors.
        host_bytes: of host memory that is held now, beside this one.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def copies(self) -> bool: ...

    @property
    def casting_bytes(self) -> int: ...

    @property
    def workspace_bytes(self) -> int: ...

    @property
    def host_bytes(self) -> int: ...

    @property
    def copy_rate(self) -> float | None:
        """Bytes per second over the bus so far; None while too little came to tell, or nothing comes over one."""

    def store(self, nbytes: int) -> Store:
        """Make memory; nothing is taken before something is brought."""

    def host(self, images: Iterable[Image]) -> None:
        """Keep these images, and no others, in host memory once they have passed through it."""

    def reads(self, image: Image) -> bool:
        """Whether to bring an image takes a read of the disk."""

    def bring(self, image: Image, store: Store) -> Arrival:
        """Start to fill a store, after all that this thread asked for so far has computed from it."""

    def moment(self) -> Moment:
        """Return when the module has computed what this thread asked for so far; do not wait."""

    def forget(self) -> None:
        """Give back host memory beside this one until something is brought through it; nothing may be on its way."""

    def rest(self) -> None:
        """Give back what bringing takes, until something is brought again; nothing may be on its way."""

    def close(self) -> None:
        """Give everything back."""
