"""A device that is not there: for tests on any machine.

Its memory is host memory, counted. Its copies are done later by a thread, at the rate of a link that may be slow, and
only from pinned memory. What a copy is on its way to, and what was given up, is poisoned: a slot that is used too early
or too late, or memory that is not pinned, shows.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import torch

from lading.devices import Event
from lading.errors import LadingError
from lading.events import Moment

POISON = 0x7F
"""Fills memory that nobody has written to: NaN as float8, nonsense as anything else."""


class FakeDevice:
    """A byte-counted device behind a throttled link; see `lading.devices.Device`.

    Attributes:
        used: bytes allocated now.
        peak: the most bytes that were allocated at a time.
        copies: how many copies came over the link.
        pinned: bytes of host memory pinned now.
        peak_pinned: the most bytes that were pinned at a time.
    """

    def __init__(self, link_bytes_per_second: float = float("inf")) -> None:
        self.used = self.peak = self.copies = self.pinned = self.peak_pinned = 0
        self._rate = link_bytes_per_second
        self._pins: dict[int, int] = {}
        self._allocated: dict[int, int] = {}
        self.torch_device = torch.device("cpu")
        self.workspace_bytes = 0
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        weakref.finalize(self, self._queue.put, None)
        threading.Thread(target=_work, args=(self._queue,), name="fake-device", daemon=True).start()

    def empty(self, nbytes: int) -> torch.Tensor:
        memory = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self._allocated[memory.data_ptr()] = nbytes
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(memory.untyped_storage(), self._free, memory.data_ptr())
        return memory

    def give_up(self, memory: torch.Tensor) -> None:
        memory.fill_(POISON)
        self.used -= memory.nbytes
        self._allocated[memory.data_ptr()] = 0

    def take_back(self, memory: torch.Tensor, nbytes: int) -> None:
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        self._allocated[memory.data_ptr()] = nbytes

    def pin(self, memory: memoryview) -> Callable[[], None]:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._pins[address] = len(memory)
        self.pinned += len(memory)
        self.peak_pinned = max(self.peak_pinned, self.pinned)
        return lambda: self._unpin(address)

    def mark(self) -> FakeEvent:
        event = FakeEvent()
        event.reached.set()  # what computes is done when it returns
        return event

    def hold_copies(self, event: Event) -> None:
        self._queue.put(event.wait)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self._holds(source):
            self._queue.put(lambda: _copy(source, target))
            return
        first, last = source.data_ptr(), source.data_ptr() + source.nbytes
        if not any(start <= first and last <= start + nbytes for start, nbytes in self._pins.items()):
            raise LadingError(f"a copy of {source.nbytes} bytes from memory that is not pinned")
        self.copies += 1
        target.view(torch.uint8).fill_(POISON)

        def transfer() -> None:
            time.sleep(source.nbytes / self._rate)
            _copy(source, target)

        self._queue.put(transfer)

    def event(self) -> FakeEvent:
        event = FakeEvent()
        self._queue.put(event.reached.set)
        return event

    def moment(self, copies: bool = False) -> Moment:
        if not copies:
            return time.perf_counter()  # what computes is done when it returns
        reached: Future[float] = Future()
        self._queue.put(lambda: reached.set_result(time.perf_counter()))
        return reached.result

    def _holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._allocated

    def _free(self, address: int) -> None:
        self.used -= self._allocated.pop(address)

    def _unpin(self, address: int) -> None:
        self.pinned -= self._pins.pop(address)


class FakeEvent:
    """A mark in a queue of copies; see `lading.devices.Event`."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    @property
    def done(self) -> bool:
        return self.reached.is_set()

    def wait(self) -> None:
        self.reached.wait()

    def hold(self) -> None:
        self.reached.wait()


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
