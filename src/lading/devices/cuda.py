"""NVIDIA (and ROCm) devices."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from lading.errors import LadingError


class CudaDevice:
    """A CUDA device with a stream of its own for copies; see `lading.devices.Device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch types it not

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pin(self, memory: memoryview) -> Callable[[], None]:
        """Lock memory at its exact size; torch's own pinned allocator rounds up to a power of two.

        Raises:
            LadingError: the driver refuses, as it does over the limit of locked memory.
        """
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # torch types it not
        with torch.cuda.device(self.device):
            status = runtime.cudaHostRegister(address, len(memory), 0)
        if int(status) != 0:
            raise LadingError(f"{len(memory)} bytes of memory cannot be pinned: CUDA error {int(status)}")

        def unpin() -> None:
            torch.cuda.synchronize(self.device)  # torch does not know of this memory: copies may still read it
            runtime.cudaHostUnregister(address)

        return unpin

    def after_allocations(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def event(self) -> CudaEvent:
        return CudaEvent(self._stream)


class CudaEvent:
    """A mark on a stream; see `lading.devices.Event`."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch types it not
        self._event.record(stream)

    def wait(self) -> None:
        self._event.synchronize()
