"""Placements: never over the limit, never slower for more memory, and no worse than anything simple."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from lading.memory.planner import (
    MAX_SLOTS,
    Placement,
    Work,
    minimum_bytes,
    minimum_host_bytes,
    next_in_slot,
    place,
    simulate,
)
from lading.memory.units import Leaf, Unit, make_units, visits


@st.composite
def works(draw: st.DrawFn, most: int = 24, device: bool = False) -> Work:
    count = draw(st.integers(1, most))
    nbytes = tuple(draw(st.lists(st.integers(1, 100), min_size=count, max_size=count)))
    order = tuple(range(count))
    if draw(st.booleans()):
        order = (*order, *draw(st.lists(st.integers(0, count - 1), max_size=4)))
    order = tuple(unit for place, unit in enumerate(order) if place == 0 or order[place - 1] != unit)
    seconds = tuple(draw(st.lists(st.floats(0.01, 10), min_size=len(order), max_size=len(order))))
    return Work(
        nbytes, seconds, order, draw(st.floats(1, 100)), draw(st.floats(10, 500)) if device else None, max(nbytes)
    )


def slot_sizes(work: Work, slots: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Each slot is as large as the largest that it holds."""
    return tuple(max(work.nbytes[unit] for unit in units) for units in slots)


def prefix(work: Work, memory: int) -> Placement | None:
    """The first units stay, as many as fit beside two slots for the rest."""
    best = None
    for count in range(len(work.nbytes) + 1):
        streamed = work.order[count:]
        slots = tuple(tuple(streamed[slot::2]) for slot in range(min(2, len(streamed))))
        sizes = slot_sizes(work, slots)
        resident = frozenset(work.order[:count])
        nbytes = sum(work.nbytes[unit] for unit in resident) + sum(sizes)
        if nbytes <= memory:
            best = Placement(resident, slots, sizes, nbytes, 0, 0.0)
    return best


@given(work=works(), share=st.floats(0, 1.2))
def test_a_placement_keeps_the_limit_and_places_every_unit_once(work: Work, share: float) -> None:
    memory = int(sum(work.nbytes) * share)
    placement = place(work, memory)
    if placement is None:
        assert memory < minimum_bytes(work)
        return
    assert memory >= minimum_bytes(work)
    assert placement.nbytes <= memory
    streamed = [unit for units in placement.slots for unit in units]
    assert sorted([*placement.resident, *streamed]) == list(range(len(work.nbytes)))
    assert placement.slot_sizes == slot_sizes(work, placement.slots)
    assert len(placement.slots) <= MAX_SLOTS


@given(work=works(), memories=st.tuples(st.integers(0, 2000), st.integers(0, 2000)))
def test_more_memory_is_never_slower(work: Work, memories: tuple[int, int]) -> None:
    less, more = (place(work, memory) for memory in sorted(memories))
    if less is not None:
        assert more is not None
        assert more.seconds <= less.seconds + 1e-9


@given(work=works(device=True), memory=st.integers(0, 2000), host_memory=st.integers(0, 2000))
def test_on_a_device_both_limits_are_kept(work: Work, memory: int, host_memory: int) -> None:
    placement = place(work, memory, host_memory)
    if placement is None:
        assert memory < minimum_bytes(work) or host_memory < minimum_host_bytes(work)
        return
    assert placement.nbytes <= memory
    assert placement.host_nbytes <= host_memory
    assert placement.hosted <= set(placement.slot_of)
    assert placement.host_nbytes == minimum_host_bytes(work) + sum(work.nbytes[unit] for unit in placement.hosted)


@given(work=works(device=True), memory=st.integers(0, 2000), host_memories=st.tuples(*[st.integers(0, 2000)] * 2))
def test_more_host_memory_is_never_slower(work: Work, memory: int, host_memories: tuple[int, int]) -> None:
    less, more = (place(work, memory, host_memory) for host_memory in sorted(host_memories))
    if less is not None:
        assert more is not None
        assert more.seconds <= less.seconds + 1e-9


@given(work=works(), memory=st.integers(0, 2000))
def test_it_is_no_slower_than_a_resident_prefix(work: Work, memory: int) -> None:
    simple, placement = prefix(work, memory), place(work, memory)
    if simple is not None:
        assert placement is not None
        slack = max(work.nbytes) / work.bytes_per_second  # the candidates' shares are steps
        assert placement.seconds <= simulate(work, simple) + slack + 1e-9


@given(work=works(most=7), share=st.floats(0.2, 1.0))
def test_small_cases_come_near_the_best_of_all_placements(work: Work, share: float) -> None:
    memory = int(sum(work.nbytes) * share)
    placement, best = place(work, memory), float("inf")
    units = range(len(work.nbytes))
    for count in range(len(work.nbytes) + 1):
        for streamed in combinations(work.order, count):
            resident = frozenset(units) - set(streamed)
            for slots in range(min(1, count), min(MAX_SLOTS, count) + 1):
                split = tuple(tuple(streamed[slot::slots]) for slot in range(slots))
                sizes = slot_sizes(work, split)
                nbytes = sum(work.nbytes[unit] for unit in resident) + sum(sizes)
                if nbytes <= memory:
                    best = min(best, simulate(work, Placement(resident, split, sizes, nbytes, 0, 0.0)))
    if placement is None:
        return
    slack = 2 * max(work.nbytes) / work.bytes_per_second
    assert best <= placement.seconds + 1e-9
    assert placement.seconds <= best + slack


@given(work=works())
def test_a_call_takes_no_less_than_its_computation_and_its_reads(work: Work) -> None:
    placement = place(work, sum(work.nbytes) // 2)
    if placement is not None:
        assert placement.seconds >= sum(work.seconds) - 1e-6
        assert placement.seconds >= placement.streamed_bytes / work.bytes_per_second - 1e-6


def test_even_residency_overlaps_what_a_prefix_cannot() -> None:
    """60 equal blocks, 26 of them resident: the published simulation of Qwen-Image (design notes of the field)."""
    work = Work((100,) * 60, (0.01,) * 60, tuple(range(60)), 100 / 0.027)
    placement = place(work, 28 * 100)
    assert placement is not None
    simple = prefix(work, 28 * 100)
    assert simple is not None
    assert placement.seconds <= 1.02 * max(0.6, placement.streamed_bytes / work.bytes_per_second)
    assert simulate(work, simple) > 1.2 * placement.seconds


@given(work=works(), memory=st.integers(0, 2000))
def test_what_is_read_next_is_needed_next_in_that_slot(work: Work, memory: int) -> None:
    placement = place(work, memory)
    if placement is None:
        return
    following = next_in_slot(work.visits, placement)
    for visit, unit in following.items():
        slot = placement.slot_of[unit]
        assert placement.slot_of[work.visits[visit]] == slot
        rest = [*work.visits[visit + 1 :], *work.visits[: visit + 1]]
        assert next(other for other in rest if placement.slot_of.get(other) == slot) == unit


NAMES = st.sampled_from("abcdefgh")


@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.integers(1, 50)), max_size=12),
    st.integers(1, 120),
)
def test_units_hold_every_leaf_once_and_leaves_that_share_a_parameter_together(
    kinds: list[tuple[list[str], int]], unit_bytes: int
) -> None:
    leaves = [Leaf(f"leaf{number}", tuple(names), nbytes) for number, (names, nbytes) in enumerate(kinds)]
    units = make_units(leaves, unit_bytes)
    assert sorted(leaf.name for unit in units for leaf in unit.leaves) == sorted(leaf.name for leaf in leaves)
    homes: dict[str, int] = {}
    for number, unit in enumerate(units):
        for name in unit.parameters:
            assert homes.setdefault(name, number) == number
    assert all(unit.nbytes <= unit_bytes or _is_one_group(unit) for unit in units)


def _is_one_group(unit: Unit) -> bool:
    reached, rest = set(unit.leaves[0].parameters), list(unit.leaves[1:])
    while True:
        near = [leaf for leaf in rest if reached & set(leaf.parameters)]
        if not near:
            return not rest
        for leaf in near:
            reached |= set(leaf.parameters)
            rest.remove(leaf)


def test_visits_follow_the_calls() -> None:
    units = make_units([Leaf(name, (name,), 10) for name in "abcd"], 20)
    assert visits(["a", "b", "c", "x", "a", "d", "d"], units) == (0, 1, 0, 1)
