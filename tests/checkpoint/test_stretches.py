"""Stretches: every tensor in one of them, none cut short, none that could be joined left apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lading.checkpoint import TensorInfo
from lading.checkpoint.stretches import find_stretches

PLACES = st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.integers(0, 12))


@given(
    places=st.lists(PLACES, max_size=12),
    gap=st.integers(0, 9),
    most=st.none() | st.integers(1, 40),
)
def test_stretches_hold_every_tensor_once_and_end_only_at_gaps_and_bounds(
    places: list[tuple[str, int, int]], gap: int, most: int | None
) -> None:
    infos = {
        f"{number}": TensorInfo("uint8", (nbytes,), Path(file), start, start + nbytes)
        for number, (file, start, nbytes) in enumerate(places)
    }
    stretches = list(find_stretches(infos, gap, most))
    named = [name for stretch in stretches for name in stretch.names]
    assert sorted(named) == sorted(name for name, info in infos.items() if info.nbytes)
    for stretch in stretches:
        held = [infos[name] for name in stretch.names]
        assert {info.file for info in held} == {stretch.file}
        assert (min(info.start for info in held), max(info.end for info in held)) == (stretch.start, stretch.end)
        assert all(left.start <= right.start for left, right in pairwise(held))
        for number, info in enumerate(held[1:], 1):
            assert info.start - max(other.end for other in held[:number]) <= gap
        assert len(held) == 1 or most is None or stretch.end - stretch.start <= most
    for before, after in pairwise(stretches):
        first = infos[after.names[0]]
        assert (
            first.file != before.file
            or first.start - before.end > gap
            or (most is not None and max(before.end, first.end) - before.start > most)
        )
