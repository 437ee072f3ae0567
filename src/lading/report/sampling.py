"""How much memory a run takes, looked at many times a second by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lading import host

_SECONDS = 0.01
_MOST_SAMPLES = 8192


class Sampler:
    """Measures memory until it is stopped; a long run is looked at less often.

    Attributes:
        times: of `time.perf_counter`.
        values: bytes, at these times.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self.times: list[float] = []
        self.values: list[int] = []
        self._measure = measure
        self._seconds = _SECONDS
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lading-sampling", daemon=True)
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Measure once more, and end."""
        self._stopped.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._sample()
            if len(self.times) >= _MOST_SAMPLES:
                self._thin()

    def _sample(self) -> None:
        self.times.append(time.perf_counter())
        self.values.append(self._measure())

    def _thin(self) -> None:
        """Keep the larger of every two samples, so that no peak is lost."""
        pairs = range(0, len(self.times) - 1, 2)
        self.values = [max(self.values[first], self.values[first + 1]) for first in pairs]
        self.times = [self.times[first] for first in pairs]
        self._seconds *= 2


def measure_of(device: str) -> Callable[[], int] | None:
    """Return what measures the memory that computing on a device takes; None where nothing tells it.

    On a CUDA device that is what torch has allocated. On the CPU it is what the kernel cannot take back from this
    process, anonymous and shared.
    """
    if device.startswith("cuda"):
        import torch

        return lambda: torch.cuda.memory_allocated(device)
    return host.taken_memory if device == "cpu" else None
