"""NVIDIA (and ROCm) devices."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import lru_cache

import torch

from lading import events
from lading.devices import Event
from lading.errors import LadingError
from lading.events import Moment


class CudaDevice:
    """A CUDA device with a stream of its own for copies; see `lading.devices.Device`."""

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call] # torch types it not

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS takes for its workspace by default: 32 MiB from Hopper on, else 8 MiB and some KB.

        Source: `CUBLAS_WORKSPACE_CONFIG` in NVIDIA's documentation, and torch's `getChosenWorkspaceSize`.
        """
        major, _ = torch.cuda.get_device_capability(self.torch_device)
        return 32 << 20 if major >= 9 else 4096 * 1024 * 2 + 16 * 8 * 1024

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def give_up(self, memory: torch.Tensor) -> None:
        memory.untyped_storage().resize_(0)

    def take_back(self, memory: torch.Tensor, nbytes: int) -> None:
        memory.untyped_storage().resize_(nbytes)

    def pin(self, memory: memoryview) -> Callable[[], None]:
        """Lock memory at its exact size; torch's own pinned allocator rounds up to a power of two.

        Raises:
            LadingError: the driver refuses, as it does over the limit of locked memory.
        """
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # torch types it not
        with torch.cuda.device(self.torch_device):
            status = runtime.cudaHostRegister(address, len(memory), 0)
        if int(status) != 0:
            raise LadingError(f"{len(memory)} bytes of memory cannot be pinned: CUDA error {int(status)}")

        def unpin() -> None:
            torch.cuda.synchronize(self.torch_device)  # torch does not know of this memory: copies may still read it
            runtime.cudaHostUnregister(address)

        return unpin

    def mark(self) -> CudaEvent:
        return CudaEvent(torch.cuda.current_stream(self.torch_device))

    def hold_copies(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self._stream.wait_event(event.event)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def event(self) -> CudaEvent:
        return CudaEvent(self._stream)

    def moment(self, copies: bool = False) -> Moment:
        origin, seconds = _origin(self.torch_device, events.recordings())
        reached = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch types it not
        reached.record(self._stream if copies else torch.cuda.current_stream(self.torch_device))

        def tell() -> float:
            reached.synchronize()
            return seconds + float(origin.elapsed_time(reached)) / 1000

        return tell


class CudaEvent:
    """A mark on a stream; see `lading.devices.Event`."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._device = stream.device
        self.event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch types it not
        self.event.record(stream)

    @property
    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call] # torch types it not

    def wait(self) -> None:
        self.event.synchronize()

    def hold(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self.event)


@lru_cache(maxsize=8)
def _origin(device: torch.device, _recording: int) -> tuple[torch.cuda.Event, float]:
    """An event from which a device's times are counted, and when it was.

    Each recording has its own: the times between events are single floats, which lose microseconds over hours.
    """
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch types it not
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        event.record()
    event.synchronize()
    return event, time.perf_counter()
