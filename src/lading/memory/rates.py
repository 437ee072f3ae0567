"""How fast the disk, the bus and the processor are: assumed at first, then measured while they work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lading.memory.trace import Call

_FEWEST_BYTES = 256 << 20
"""Less than this tells nothing about a disk."""


@dataclass(frozen=True)
class Rates:
    """What plans predict with.

    Attributes:
        read: bytes per second from the disk.
        copy: bytes per second from host memory to a device.
        compute: floating-point operations per second.
        memory: bytes per second of weights that layers compute with, however few the operations.
    """

    read: float = 1.5e9
    copy: float = 2e10
    compute: float = 5e11
    memory: float = 1e10

    def seconds(self, flops: int, nbytes: int) -> float:
        """Predict how long it takes to compute with weights."""
        return max(flops / self.compute, nbytes / self.memory, 1e-6)

    def call_seconds(self, call: Call) -> float:
        """Predict how long a leaf takes."""
        return call.flops / self.compute


class Meter:
    """Measures the rate of a link while it is busy; its parts are used by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self._seconds = 0.0
        self._nbytes = 0

    def metered(self, task: Callable[[], None], nbytes: int) -> Callable[[], None]:
        """Return a task that counts, with the bytes that it moves."""

        def run() -> None:
            with self._lock:
                if self._running == 0:
                    self._since = time.perf_counter()
                self._running += 1
            moved = 0
            try:
                task()
                moved = nbytes
            finally:
                with self._lock:
                    self._nbytes += moved
                    self._running -= 1
                    if self._running == 0:
                        self._seconds += time.perf_counter() - self._since

        return run

    @property
    def bytes_per_second(self) -> float | None:
        """The rate so far; None while too little was moved to tell."""
        return self._nbytes / self._seconds if self._nbytes >= _FEWEST_BYTES and self._seconds > 0 else None
