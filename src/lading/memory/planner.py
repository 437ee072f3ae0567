"""Which units stay where the module computes, which wait in host memory, and which come from the disk. Pure.

A denoiser walks its weights in a circle, so a cache of any size that forgets the oldest re-reads everything. What
helps is a fixed resident set, spread evenly over the order, so that the link is busy all the way round. The candidates
below do not depend on the limits; the best of those that fit is taken. So more memory is never slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

MAX_SLOTS = 4
BOUNCES = 2
"""Units that are on their way from the disk to a device at a time: one is read while the other is copied."""
_SHARES = 96
_LARGE = 2
"""Times the usual unit: larger ones, such as embeddings, stay in some candidates, as their slot takes their size."""
_ROUNDING = 1e-9
"""Of a call's time: where two placements differ by less, the one that streams less is better."""


@dataclass(frozen=True)
class Work:
    """One call of a module, unit by unit.

    Attributes:
        nbytes: of each unit in memory.
        seconds: of each visit's computation.
        visits: the units in the order in which they are needed.
        bytes_per_second: of the disk.
        bus_bytes_per_second: of copies from host memory to a device; None where the module computes in host memory.
        passing_bytes: the most that passes through host memory to a device at a time.
        stored: bytes of each unit on the disk; as many as in memory where it is empty.
    """

    nbytes: tuple[int, ...]
    seconds: tuple[float, ...]
    visits: tuple[int, ...]
    bytes_per_second: float
    bus_bytes_per_second: float | None = None
    passing_bytes: int = 0
    stored: tuple[int, ...] = ()

    @cached_property
    def read_seconds(self) -> tuple[float, ...]:
        """How long the disk takes for each unit."""
        return tuple(nbytes / self.bytes_per_second for nbytes in self.stored or self.nbytes)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All units, in the order of their first visit; those that are never visited come last."""
        return tuple(dict.fromkeys((*self.visits, *range(len(self.nbytes)))))


@dataclass(frozen=True)
class Placement:
    """Where each unit lives while the module computes.

    Attributes:
        resident: units that stay where the module computes.
        slots: for each slot the units that it holds in turns, in their order.
        slot_sizes: in bytes: each slot is as large as its largest unit.
        nbytes: of the resident units and the slots.
        streamed_bytes: that come to the slots at every call.
        seconds: predicted for a call, after the first.
        hosted: streamed units that wait in host memory.
        host_nbytes: of them, and of the memory through which units go from the disk to a device.
    """

    resident: frozenset[int]
    slots: tuple[tuple[int, ...], ...]
    slot_sizes: tuple[int, ...]
    nbytes: int
    streamed_bytes: int
    seconds: float
    hosted: frozenset[int] = frozenset()
    host_nbytes: int = 0

    @cached_property
    def slot_of(self) -> dict[int, int]:
        """Streamed unit -> its slot."""
        return {unit: number for number, units in enumerate(self.slots) for unit in units}


def place(work: Work, memory: int, host_memory: int = 0) -> Placement | None:
    """Return the placement that makes a call fastest within so many bytes, or None if none fits.

    Args:
        memory: where the module computes.
        host_memory: beside it, where the module computes on a device.
    """
    candidates = (candidate for candidate in _candidates(work) if candidate.nbytes <= memory)
    fitting = [hosted for candidate in candidates if (hosted := _host(work, candidate, host_memory)) is not None]
    best: Placement | None = None
    for candidate in sorted(
        fitting, key=lambda candidate: (candidate.seconds, candidate.streamed_bytes, candidate.nbytes)
    ):
        beats = None if best is None else best.seconds * (1 - _ROUNDING)
        if beats is not None and candidate.seconds >= beats:
            break  # so far, seconds is only what no schedule can beat
        seconds = simulate(work, candidate)
        if beats is None or seconds < beats:
            best = replace(candidate, seconds=seconds)
    return best


def minimum_bytes(work: Work) -> int:
    """Return the least memory in which the units can be placed where they compute."""
    return min(candidate.nbytes for candidate in _candidates(work))


def minimum_host_bytes(work: Work) -> int:
    """Return the least host memory beside a device."""
    return 0 if work.bus_bytes_per_second is None else BOUNCES * work.passing_bytes


def simulate(work: Work, placement: Placement, calls: int = 4) -> float:
    """Return the seconds of the last of several calls, transfers and computation side by side."""
    return _simulated(work, placement, {units[0] for units in placement.slots}, calls)[-1]


def simulate_first(work: Work, placement: Placement) -> float:
    """Return the seconds of the first call, in which all that stays anywhere comes from the disk."""
    placement = replace(placement, hosted=frozenset())
    return _simulated(work, placement, {*placement.resident, *(units[0] for units in placement.slots)}, 1)[0]


def _simulated(work: Work, placement: Placement, absent: Set[int], calls: int) -> list[float]:
    """Return the seconds of calls, one by one.

    A slot is requested anew when its unit has computed. Requests are served one after another: the disk reads the next
    unit while the bus copies the one before.

    Args:
        absent: units that are requested when the first call begins.
    """
    following = next_in_slot(work.visits, placement)
    ready = [0.0] * len(work.nbytes)
    clock = 0.0
    links = _Links(work, placement)
    for unit in work.order:
        if unit in absent:
            ready[unit] = links.bring(unit, 0.0)
    seconds = []
    for _ in range(calls):
        start = clock
        for visit, unit in enumerate(work.visits):
            clock = max(clock, ready[unit]) + work.seconds[visit]
            successor = following.get(visit)
            if successor is not None:
                ready[successor] = links.bring(successor, clock)
        seconds.append(clock - start)
    return seconds


class _Links:
    """The disk and the bus, and until when they are busy."""

    def __init__(self, work: Work, placement: Placement) -> None:
        self._work = work
        self._hosted = placement.hosted
        self._disk = self._bus = 0.0

    def bring(self, unit: int, requested: float) -> float:
        """Return when a unit that is requested now is there."""
        there = requested
        if unit not in self._hosted:
            there = self._disk = max(self._disk, there) + self._work.read_seconds[unit]
        if self._work.bus_bytes_per_second is not None:
            there = self._bus = max(self._bus, there) + self._work.nbytes[unit] / self._work.bus_bytes_per_second
        return there


def next_in_slot(visits: Sequence[int], placement: Placement) -> dict[int, int]:
    """Return for each visit after which a slot is free the unit that is read into it next, the circle closed."""
    turns: dict[int, list[int]] = {}
    for visit, unit in enumerate(visits):
        if unit in placement.slot_of:
            turns.setdefault(placement.slot_of[unit], []).append(visit)
    following = {}
    for places in turns.values():
        for place_, successor in zip(places, (*places[1:], places[0]), strict=True):
            if visits[place_] != visits[successor]:
                following[place_] = visits[successor]
    return following


def _candidates(work: Work) -> Iterator[Placement]:
    """Placements worth trying; `seconds` is a bound from below."""
    yield _placement(work, (), 1)
    seen: set[tuple[tuple[int, ...], int]] = set()
    usual = [unit for unit in work.order if work.nbytes[unit] <= _LARGE * median(work.nbytes)]
    for number in range(1, _SHARES + 1):
        share = number / _SHARES
        for streamed in (_spread(work, work.order, share), _spread(work, usual, share), _suffix(work, share)):
            for slots in range(1, min(MAX_SLOTS, len(streamed)) + 1):
                if streamed and (streamed, slots) not in seen:
                    seen.add((streamed, slots))
                    yield _placement(work, streamed, slots)


def _host(work: Work, placement: Placement, host_memory: int) -> Placement | None:
    """A placement with as many of its streamed units in host memory as it holds, spread over the order.

    More host memory adds to the set and takes nothing from it: so it is never slower.
    """
    if work.bus_bytes_per_second is None:
        return placement
    nbytes = minimum_host_bytes(work)
    if nbytes > host_memory:
        return None
    streamed = [unit for unit in work.order if unit in placement.slot_of]
    bits = len(streamed).bit_length()
    hosted = set()
    for number in sorted(range(len(streamed)), key=lambda number: f"{number:0{bits}b}"[::-1]):
        if nbytes + work.nbytes[streamed[number]] > host_memory:
            break
        hosted.add(streamed[number])
        nbytes += work.nbytes[streamed[number]]
    moves = next_in_slot(work.visits, placement).values()
    read = sum(work.read_seconds[unit] for unit in moves if unit not in hosted)
    bound = max(sum(work.seconds), read, placement.streamed_bytes / work.bus_bytes_per_second)
    return replace(placement, seconds=bound, hosted=frozenset(hosted), host_nbytes=nbytes)


def _spread(work: Work, units: Sequence[int], share: float) -> tuple[int, ...]:
    """Units to stream: about this share of the bytes of these, spread evenly over the order."""
    streamed, debt = [], 0.0
    for unit in units:
        debt += work.nbytes[unit] * share
        if debt >= work.nbytes[unit] / 2:
            streamed.append(unit)
            debt -= work.nbytes[unit]
    return tuple(streamed)


def _suffix(work: Work, share: float) -> tuple[int, ...]:
    """Units to stream: the last of the order, about this share of the bytes."""
    streamed, held = [], 0
    for unit in reversed(work.order):
        if held >= share * sum(work.nbytes):
            break
        streamed.append(unit)
        held += work.nbytes[unit]
    return tuple(reversed(streamed))


def _placement(work: Work, streamed: Sequence[int], count: int) -> Placement:
    slots = tuple(tuple(streamed[slot::count]) for slot in range(count)) if streamed else ()
    slot_sizes = tuple(max(work.nbytes[unit] for unit in units) for units in slots)
    resident = frozenset(range(len(work.nbytes))) - set(streamed)
    held = sum(work.nbytes[unit] for unit in resident)
    draft = Placement(resident, slots, slot_sizes, held + sum(slot_sizes), 0, 0.0)
    moves = tuple(next_in_slot(work.visits, draft).values())
    read = sum(work.read_seconds[unit] for unit in moves)
    moved = sum(work.nbytes[unit] for unit in moves)
    return replace(draft, streamed_bytes=moved, seconds=max(sum(work.seconds), read))
