"""How fast the disk, the bus and the processor are: assumed, measured once for all, and measured while they work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, log, log2

from lading.memory.operations import Operation
from lading.memory.trace import Call

FEWEST_BYTES = 256 << 20
"""Less than this tells nothing about a disk or a bus."""


@dataclass(frozen=True)
class Speed:
    """How fast an operator was at some sizes.

    Attributes:
        operator: as in `Operation`; likewise `dtype` and `sizes`.
        rate: floating-point operations per second, or bytes per second of an operator without.
    """

    operator: str
    dtype: str
    sizes: tuple[int, ...]
    rate: float


@dataclass(frozen=True)
class Rates:
    """What plans predict with.

    Attributes:
        read: bytes per second from the disk.
        copy: bytes per second from host memory to a device.
        compute: floating-point operations per second.
        memory: bytes per second that layers compute with, however few the operations.
        speeds: of operators; what was measured wins over `compute` and `memory`.
        overhead: seconds that every operator takes beside.
        slowness: how many times longer operators take than when their speeds were measured.
    """

    read: float = 1.5e9
    copy: float = 2e10
    compute: float = 5e11
    memory: float = 1e10
    speeds: tuple[Speed, ...] = ()
    overhead: float = 1e-6
    slowness: float = 1.0

    def seconds(self, flops: int, nbytes: int) -> float:
        """Predict how long it takes to compute with weights."""
        return max(flops / self.compute, nbytes / self.memory, 1e-6)

    def call_seconds(self, call: Call) -> float:
        """Predict how long a leaf takes."""
        return sum(self.operation_seconds(operation) for operation in call.operations)

    def operation_seconds(self, operation: Operation) -> float:
        """Predict how long an operator takes: at the speed that it had at sizes like these."""
        known = self._by_operator.get((operation.operator, operation.dtype))
        if known is None:
            return self.overhead * self.slowness + max(operation.flops / self.compute, operation.nbytes / self.memory)
        rate = known.get(operation.sizes) or _between(known, operation.sizes)
        return self.slowness * (self.overhead + (operation.flops or operation.nbytes) / rate)

    def slower(self, factor: float) -> Rates:
        """Return the rates of a processor that takes so many times longer."""
        return replace(
            self, compute=self.compute / factor, memory=self.memory / factor, slowness=self.slowness * factor
        )

    @cached_property
    def _by_operator(self) -> dict[tuple[str, str], dict[tuple[int, ...], float]]:
        """Operator and dtype -> sizes -> rate."""
        found: dict[tuple[str, str], dict[tuple[int, ...], float]] = {}
        for speed in self.speeds:
            found.setdefault((speed.operator, speed.dtype), {})[speed.sizes] = speed.rate
        return found


def _between(rates: Mapping[tuple[int, ...], float], sizes: tuple[int, ...]) -> float:
    """Weigh measured rates by how near their sizes, which are others, are in powers of two."""
    total = weight = 0.0
    for known, rate in rates.items():
        distance = sum((log2(max(one, 1)) - log2(max(other, 1))) ** 2 for one, other in zip(known, sizes, strict=True))
        if distance == 0:  # of nothing, and of one
            return rate
        total += log(rate) / distance
        weight += 1 / distance
    return exp(total / weight)


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
        return self._nbytes / self._seconds if self._nbytes >= FEWEST_BYTES and self._seconds > 0 else None
