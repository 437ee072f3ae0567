"""Runs of consecutive leaves whose weights move together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNIT_BYTES = 64 << 20
"""Large enough for the disk and the bus to run at their rate, small enough for slots to cost little."""


@dataclass(frozen=True)
class Leaf:
    """A module whose own parameters move.

    Attributes:
        parameters: their names, each once, also where two modules share one.
        nbytes: of these parameters.
    """

    name: str
    parameters: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """Leaves that move together, in the order in which they first run."""

    leaves: tuple[Leaf, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, each once."""
        return tuple(dict.fromkeys(name for leaf in self.leaves for name in leaf.parameters))

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters, as they compute."""
        return sum(leaf.nbytes for leaf in self.leaves)


def make_units(leaves: Sequence[Leaf], unit_bytes: int = UNIT_BYTES) -> tuple[Unit, ...]:
    """Cut leaves, given in the order in which they first run, into units of at most so many bytes, or of one leaf.

    Leaves that share a parameter come together, at the place of the first.
    """
    groups = _joined(leaves)
    units: list[Unit] = []
    current: list[Leaf] = []
    for group in groups:
        if current and sum(leaf.nbytes for leaf in (*current, *group)) > unit_bytes:
            units.append(Unit(tuple(current)))
            current = []
        current += group
    return (*units, Unit(tuple(current))) if current else tuple(units)


def visits(calls: Sequence[str], units: Sequence[Unit]) -> tuple[int, ...]:
    """Return the units that a sequence of leaves' runs visits, one after another."""
    home = {leaf.name: number for number, unit in enumerate(units) for leaf in unit.leaves}
    found: list[int] = []
    for call in calls:
        if call in home and (not found or found[-1] != home[call]):
            found.append(home[call])
    return tuple(found)


def _joined(leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Leaves in groups that share no parameter with another group; within a group each parameter counts once."""
    group_of: dict[str, list[Leaf]] = {}
    groups: list[list[Leaf]] = []
    for leaf in leaves:
        shared: Mapping[int, list[Leaf]] = {
            id(group_of[name]): group_of[name] for name in leaf.parameters if name in group_of
        }
        if shared:
            first, *others = sorted(shared.values(), key=groups.index)
            for other in others:
                first += other
                groups.remove(other)
        else:
            first = []
            groups.append(first)
        first.append(leaf)
        for member in first:
            for name in member.parameters:
                group_of[name] = first
    return groups
