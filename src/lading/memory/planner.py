"""Which units stay and which are streamed through how many slots: the fastest placement that fits. Pure.

A denoiser walks its weights in a circle, so a cache of any size that forgets the oldest re-reads everything. What
helps is a fixed resident set, spread evenly over the order, so that the link is busy all the way round. The candidates
below do not depend on the limit; the best of those that fit is taken. So more memory is never slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

MAX_SLOTS = 4
_SHARES = 96


@dataclass(frozen=True)
class Work:
    """One call of a module, unit by unit.

    Attributes:
        nbytes: of each unit in memory.
        seconds: of each visit's computation.
        visits: the units in the order in which they are needed.
        bytes_per_second: of the link that streamed units come over.
    """

    nbytes: tuple[int, ...]
    seconds: tuple[float, ...]
    visits: tuple[int, ...]
    bytes_per_second: float

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All units, in the order of their first visit; those that are never visited come last."""
        return tuple(dict.fromkeys((*self.visits, *range(len(self.nbytes)))))


@dataclass(frozen=True)
class Placement:
    """Where each unit lives while the module computes.

    Attributes:
        resident: units that stay.
        slots: for each slot the units that it holds in turns, in their order.
        slot_bytes: the size of a slot: that of the largest streamed unit.
        nbytes: of the resident units and the slots.
        streamed_bytes: that come over the link at every call.
        seconds: predicted for a call, after the first.
    """

    resident: frozenset[int]
    slots: tuple[tuple[int, ...], ...]
    slot_bytes: int
    nbytes: int
    streamed_bytes: int
    seconds: float

    @cached_property
    def slot_of(self) -> dict[int, int]:
        """Streamed unit -> its slot."""
        return {unit: number for number, units in enumerate(self.slots) for unit in units}


def place(work: Work, memory: int) -> Placement | None:
    """Return the placement that makes a call fastest within so many bytes, or None if none fits."""
    fitting = [candidate for candidate in _candidates(work) if candidate.nbytes <= memory]
    best: Placement | None = None
    for candidate in sorted(
        fitting, key=lambda candidate: (candidate.seconds, candidate.streamed_bytes, candidate.nbytes)
    ):
        if best is not None and candidate.seconds >= best.seconds:
            break  # so far, seconds is only what no schedule can beat
        simulated = _timed(candidate, simulate(work, candidate))
        if best is None or simulated.seconds < best.seconds:
            best = simulated
    return best


def minimum_bytes(work: Work) -> int:
    """Return the least memory in which the units can be placed."""
    return min(candidate.nbytes for candidate in _candidates(work))


def simulate(work: Work, placement: Placement, calls: int = 4) -> float:
    """Return the seconds of the last of several calls, reads and computation side by side.

    The link serves one read at a time, in the order of requests. A slot is requested anew when its unit has computed.
    """
    following = next_in_slot(work.visits, placement)
    ready = [0.0] * len(work.nbytes)
    holds = {slot: units[0] for slot, units in enumerate(placement.slots)}
    clock = link = start = 0.0
    for slot in sorted(holds, key=lambda slot: work.order.index(holds[slot])):
        link += work.nbytes[holds[slot]] / work.bytes_per_second
        ready[holds[slot]] = link
    for _ in range(calls):
        start = clock
        for visit, unit in enumerate(work.visits):
            clock = max(clock, ready[unit]) + work.seconds[visit]
            successor = following.get(visit)
            if successor is not None:
                link = max(link, clock) + work.nbytes[successor] / work.bytes_per_second
                ready[successor] = link
    return clock - start


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
    for number in range(1, _SHARES + 1):
        share = number / _SHARES
        for streamed in (_spread(work, share), _suffix(work, share)):
            for slots in range(1, min(MAX_SLOTS, len(streamed)) + 1):
                if streamed and (streamed, slots) not in seen:
                    seen.add((streamed, slots))
                    yield _placement(work, streamed, slots)


def _spread(work: Work, share: float) -> tuple[int, ...]:
    """Units to stream: about this share of the bytes, spread evenly over the order."""
    streamed, debt = [], 0.0
    for unit in work.order:
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
    slot_bytes = max((work.nbytes[unit] for unit in streamed), default=0)
    resident = frozenset(range(len(work.nbytes))) - set(streamed)
    held = sum(work.nbytes[unit] for unit in resident)
    draft = Placement(resident, slots, slot_bytes, held + len(slots) * slot_bytes, 0, 0.0)
    moved = sum(work.nbytes[unit] for unit in next_in_slot(work.visits, draft).values())
    bound = max(sum(work.seconds), moved / work.bytes_per_second)
    return Placement(resident, slots, slot_bytes, draft.nbytes, moved, bound)


def _timed(placement: Placement, seconds: float) -> Placement:
    return Placement(
        placement.resident, placement.slots, placement.slot_bytes, placement.nbytes, placement.streamed_bytes, seconds
    )
