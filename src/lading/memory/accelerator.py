"""A device as a home: weights come over a bus, from host memory where they wait, or from the disk through it.

One thread for each home serves what is asked for, in order: it reads a unit into pinned memory unless the unit waits
there, and queues its copy. While the bus copies, the next unit is read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import torch

from lading import events
from lading.checkpoint.arena import Arena
from lading.checkpoint.reading import Reading
from lading.devices import Device, Event
from lading.errors import CheckpointError
from lading.events import Moment, seconds_of
from lading.memory.files import WeightFiles
from lading.memory.image import Image, Store
from lading.memory.planner import BOUNCES
from lading.memory.rates import FEWEST_BYTES


class DeviceStore:
    """Memory on a device; see `lading.memory.image.Store`."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.memory = device.empty(nbytes)
        self._device = device
        self._nbytes = nbytes
        self._there = True
        self.discard()

    def tensor(self, dtype: torch.dtype, start: int, end: int) -> torch.Tensor:
        self.require()
        return self.memory[start:end].view(dtype)

    def require(self) -> None:
        """Take the memory if it was given back."""
        if not self._there:
            self._device.take_back(self.memory, self._nbytes)
            self._there = True

    def discard(self) -> None:
        if self._there:
            self._device.give_up(self.memory)
            self._there = False


class DeviceHome:
    """See `lading.memory.home.Home`."""

    copies = True
    casting_bytes = 0

    def __init__(self, device: Device, files: WeightFiles) -> None:
        self._device = device
        self._files = files
        self._hosted: dict[Image, _Pinned] = {}
        self._bounces: queue.SimpleQueue[tuple[_Pinned | None, Event | None]] = queue.SimpleQueue()
        for _ in range(BOUNCES):
            self._bounces.put((None, None))
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="lading-moving")
        self._bus = _Bus(device)

    @property
    def device(self) -> torch.device:
        return self._device.torch_device

    @property
    def workspace_bytes(self) -> int:
        return self._device.workspace_bytes

    @property
    def host_bytes(self) -> int:
        return sum(pinned.arena.nbytes for pinned in self._hosted.values() if pinned.filled)

    @property
    def copy_rate(self) -> float | None:
        return self._bus.rate

    def store(self, nbytes: int) -> DeviceStore:
        return DeviceStore(self._device, nbytes)

    def host(self, images: Iterable[Image]) -> None:
        wanted = set(images)
        for image in self._hosted.keys() - wanted:
            self._hosted.pop(image).free()
        for image in wanted - self._hosted.keys():
            self._hosted[image] = _Pinned(self._device, image.nbytes)

    def reads(self, image: Image) -> bool:
        hosted = self._hosted.get(image)
        return hosted is None or not hosted.filled

    def bring(self, image: Image, store: Store) -> _Transfer:
        assert isinstance(store, DeviceStore)
        store.require()
        stopped, computed = threading.Event(), self._device.mark()
        return _Transfer(self._mover.submit(self._move, image, store, computed, stopped), stopped)

    def moment(self) -> Moment:
        return self._device.moment()

    def forget(self) -> None:
        for pinned in self._hosted.values():
            pinned.free()

    def rest(self) -> None:
        for _ in range(BOUNCES):
            pinned, event = self._bounces.get()
            if event is not None:
                event.wait()
            if pinned is not None:
                pinned.free()
            self._bounces.put((None, None))

    def close(self) -> None:
        self._mover.shutdown()
        self.host(())
        self.rest()

    def _move(self, image: Image, store: DeviceStore, computed: Event, stopped: threading.Event) -> Event | None:
        """Queue the copy of one image, and return what comes after it; None where it is not wanted any more."""
        if stopped.is_set():
            return None
        hosted = self._hosted.get(image)
        if hosted is not None:
            self._fill(image, hosted)
            return self._copy(image, hosted, store, computed)
        bounce, event = self._bounces.get()
        try:
            if event is not None:
                event.wait()
            if bounce is None or bounce.arena.nbytes < image.nbytes:
                if bounce is not None:
                    bounce.free()
                bounce = _Pinned(self._device, image.nbytes)
            bounce.filled = False
            self._fill(image, bounce)
            event = self._copy(image, bounce, store, computed)
            return event
        finally:
            self._bounces.put((bounce, event))

    def _fill(self, image: Image, pinned: _Pinned) -> None:
        if not pinned.filled:
            Reading(self._files.tasks(image, pinned.arena)).wait()
            pinned.filled = True
        pinned.pin()

    def _copy(self, image: Image, pinned: _Pinned, store: DeviceStore, computed: Event) -> Event:
        self._device.hold_copies(computed)
        if image.nbytes:  # there may be no parameters that must always be there
            source = pinned.arena.tensor(torch.uint8, 0, image.nbytes)
            clock = partial(self._device.moment, copies=True)
            with events.span("copy", image.name, image.file, image.nbytes, clock):
                self._bus.copy(source, store.memory[: image.nbytes])
        return self._device.event()


class _Bus:
    """Queues copies, and times them by the device's own clock until its rate can be told."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._copied = 0
        self._spans: list[tuple[Moment, Moment]] = []
        self._rate: float | None = None

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self._copied >= FEWEST_BYTES:
            self._device.copy(source, target)
            return
        start = self._device.moment(copies=True)
        self._device.copy(source, target)
        self._spans.append((start, self._device.moment(copies=True)))
        self._copied += source.nbytes

    @property
    def rate(self) -> float | None:
        """Bytes per second; None while too little was copied to tell. Waits for the first copies."""
        if self._rate is None and self._copied >= FEWEST_BYTES:
            self._rate = self._copied / sum(seconds_of(end) - seconds_of(start) for start, end in self._spans)
            self._spans.clear()
        return self._rate


class _Pinned:
    """Host memory for an image, pinned once it is written: that is faster than to pin what has no pages yet."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.arena = Arena(0, nbytes)
        self.filled = False
        self._device = device
        self._unpin: Callable[[], None] | None = None

    def pin(self) -> None:
        if self._unpin is None:
            self._unpin = self._device.pin(self.arena.view(0, self.arena.nbytes))

    def free(self) -> None:
        """Unpin, and give the memory back; no copy may be on its way."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self.arena.discard()
        self.filled = False


@dataclass(frozen=True)
class _Transfer:
    """See `lading.memory.home.Arrival`."""

    future: Future[Event | None]
    stopped: threading.Event

    @property
    def done(self) -> bool:
        if not self.future.done():
            return False
        if self.future.cancelled() or self.future.exception() is not None:
            return True
        event = self.future.result()
        return event is None or event.done

    def wait(self) -> None:
        event = self.future.result()
        if event is None:
            raise CheckpointError("the transfer was cancelled")
        event.hold()

    def cancel(self) -> None:
        self.stopped.set()
        self.future.cancel()
        wait([self.future])
        if not self.future.cancelled() and self.future.exception() is None:
            event = self.future.result()
            if event is not None:
                event.wait()
