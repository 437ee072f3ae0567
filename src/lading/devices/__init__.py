"""Devices that compute in memory of their own: what lading asks of one. A new device is one new file here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Event(Protocol):
    """A point in a device's queue of copies."""

    def wait(self) -> None:
        """Return when every copy before it is done."""


class Device(Protocol):
    """A device, its memory and its queue of copies.

    Copies run in the order in which they are asked for, beside whatever the device computes, and beside the threads
    that ask. Any thread may ask.
    """

    def empty(self, nbytes: int) -> torch.Tensor:
        """Allocate memory on the device: a flat uint8 tensor."""

    def pin(self, memory: memoryview) -> Callable[[], None]:
        """Lock host memory in place, so that it can be copied from at the bus's rate; return what unlocks it."""

    def after_allocations(self) -> None:
        """Let the copies that follow start after whatever used freshly allocated memory before."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy to the device, or a cast on it; the source must stay as it is until an event after it."""

    def event(self) -> Event:
        """Mark the queue after the copies asked for so far."""


def find_device(device: str | torch.device) -> Device | None:
    """Return the device that uploads go through, or None for the CPU and devices that torch alone serves."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        from lading.devices.cuda import CudaDevice

        return CudaDevice(device)
    return None
