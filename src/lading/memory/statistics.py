"""What streaming did: in all, call by call, and unit by unit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEPT_CALLS = 1000


@dataclass
class UnitStatistics:
    """What became of one unit.

    Attributes:
        name: of its first leaf.
        brought: how often it was brought to where it computes.
        hits: how often it was there when it was needed.
        late: how often it was on its way.
        diverged: how often it had to be brought at once, as the module took another path than in the trace.
        waited_seconds: that computation stood still for it.
    """

    name: str
    brought: int = 0
    hits: int = 0
    late: int = 0
    diverged: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class CallStatistics:
    """One call of a module.

    Attributes:
        entry: the method.
        read_bytes: that were asked for from the disk while it ran.
        copied_bytes: that were asked for over the bus while it ran.
        waited_seconds: that computation stood still for weights.
    """

    entry: str
    seconds: float
    read_bytes: int
    copied_bytes: int
    waited_seconds: float

    @classmethod
    def between(cls, before: Statistics, after: Statistics, entry: str, seconds: float) -> CallStatistics:
        """What happened in between."""
        return cls(
            entry,
            seconds,
            after.read_bytes - before.read_bytes,
            after.copied_bytes - before.copied_bytes,
            after.waited_seconds - before.waited_seconds,
        )


@dataclass
class Statistics:
    """What streaming did since the module was loaded.

    Attributes:
        calls: of the module.
        read_bytes: that were asked for from the disk.
        copied_bytes: that were asked for over a bus.
        hits: units that were there when they were needed.
        late: units that were on the way.
        diverged: units that had to be brought at once, as the module took another path than in the trace.
        waited_seconds: that computation stood still for weights.
        units: since they were placed last.
        recent: the last calls, at most `KEPT_CALLS`.
    """

    calls: int = 0
    read_bytes: int = 0
    copied_bytes: int = 0
    hits: int = 0
    late: int = 0
    diverged: int = 0
    waited_seconds: float = 0.0
    units: tuple[UnitStatistics, ...] = ()
    recent: deque[CallStatistics] = field(default_factory=lambda: deque(maxlen=KEPT_CALLS))

    @property
    def hit_ratio(self) -> float:
        """The share of units that were there when they were needed."""
        needed = self.hits + self.late + self.diverged
        return self.hits / needed if needed else 1.0
