"""Devices that compute in memory of their own: what lading asks of one. A new device is one new file here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from lading.events import Moment

if TYPE_CHECKING:
    import torch


_MOST_WORKSPACE_BYTES = 32 << 20
"""Of CUDA devices; see `CudaDevice.workspace_bytes`."""


class Event(Protocol):
    """A point in a device's queue of copies, or of computations."""

    @property
    def done(self) -> bool:
        """Whether everything before it is done."""

    def wait(self) -> None:
        """Return when everything before it is done."""

    def hold(self) -> None:
        """Let what this thread asks the device to compute from now on start after it; do not wait."""


class Device(Protocol):
    """A device, its memory and its queue of copies.

    Copies run in the order in which they are asked for, beside whatever the device computes, and beside the threads
    that ask. Any thread may ask.

    Attributes:
        torch_device: what torch knows it as.
        workspace_bytes: what libraries keep on the device beside tensors, once they have computed.
    """

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def workspace_bytes(self) -> int: ...

    def empty(self, nbytes: int) -> torch.Tensor:
        """Allocate memory on the device: a flat uint8 tensor."""

    def give_up(self, memory: torch.Tensor) -> None:
        """Free what `empty` gave; it, and what views it, has no values until `take_back`."""

    def take_back(self, memory: torch.Tensor, nbytes: int) -> None:
        """Allocate memory anew for what `give_up` freed."""

    def pin(self, memory: memoryview) -> Callable[[], None]:
        """Lock host memory in place, so that it can be copied from at the bus's rate; return what unlocks it."""

    def mark(self) -> Event:
        """Mark the queue of what this thread asked the device to compute so far."""

    def hold_copies(self, event: Event) -> None:
        """Let the copies that follow start after an event."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy to the device, or a cast on it; the source must stay as it is until an event after it."""

    def event(self) -> Event:
        """Mark the queue after the copies asked for so far."""

    def moment(self, copies: bool = False) -> Moment:
        """Return when the device has computed, or copied, what this thread asked it for so far; do not wait."""


def find_device(device: str | torch.device) -> Device | None:
    """Return the device that uploads go through, or None for the CPU and devices that torch alone serves."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        from lading.devices.cuda import CudaDevice

        return CudaDevice(device)
    return None


@lru_cache(maxsize=64)
def device_clock(device: str) -> Callable[[], Moment]:
    """Return what gives the moments of a device's computations: of the CPU, and of devices that torch alone serves,
    when they were asked for.
    """
    found = find_device(device)
    return time.perf_counter if found is None else found.moment


def workspace_bytes(device: str | torch.device) -> int:
    """Return what libraries keep on a device beside tensors, the most of all kinds where it is not there."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return 0
    if not torch.cuda.is_available():
        return _MOST_WORKSPACE_BYTES
    found = find_device(device)
    assert found is not None
    return found.workspace_bytes
