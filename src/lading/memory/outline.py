"""A module cut into units, as the planner sees it: how large they are in memory and on the disk, and how long each
computes. What streams and what only predicts both plan with this. No memory, no file, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from lading.memory.image import Image, Weight
from lading.memory.planner import Work, minimum_bytes, minimum_host_bytes
from lading.memory.rates import Rates
from lading.memory.tables import has_rows, is_lookup, rows_bytes
from lading.memory.trace import Call, Trace
from lading.memory.units import UNIT_BYTES, Leaf, Unit, make_units, visits

_FEWEST_UNITS = 24
"""Small modules are cut into at least about so many units, so that a part of them can stay."""

Places = Mapping[str, list[tuple[torch.nn.Module, str]]]
"""Parameter name -> the modules that hold it, and its name in each."""


@dataclass(frozen=True)
class Parts:
    """What a module's weights are.

    Attributes:
        leaves: whose weights move, in the order in which they run.
        fixed: names of parameters that must always be there.
        tables: leaf -> the parameter of which it looks up single rows.
    """

    leaves: tuple[Leaf, ...]
    fixed: frozenset[str]
    tables: Mapping[str, str]


@dataclass(frozen=True)
class Surroundings:
    """Where a module computes.

    Attributes:
        copies: whether weights come through host memory, over a bus.
        casting_bytes: what casts of arriving weights take there at most.
        workspace_bytes: what libraries keep there beside tensors.
    """

    copies: bool = False
    casting_bytes: int = 0
    workspace_bytes: int = 0


class Outline:
    """A module's units and their images.

    Attributes:
        parts: leaves, and what does not move with them.
        units: runs of leaves whose weights move together.
        images: of the units.
        fixed: the image of the parameters that must always be there.
        overhead_bytes: what is taken beside units, buffers and activations.
    """

    def __init__(
        self,
        parts: Parts,
        weights: Mapping[str, Weight],
        unit_bytes: int,
        surroundings: Surroundings,
    ) -> None:
        """Cut a module.

        Args:
            weights: parameter name -> where its bytes are.
            unit_bytes: see `make_units`.
        """
        self.parts = parts
        self.units: tuple[Unit, ...] = make_units(parts.leaves, unit_bytes)
        self.images = tuple(Image({name: weights[name] for name in unit.parameters}) for unit in self.units)
        self.fixed = Image({name: weights[name] for name in sorted(parts.fixed)})
        self._weights = weights
        self._surroundings = surroundings
        casts = any(image.casts for image in (*self.images, self.fixed))
        casting_bytes = surroundings.casting_bytes if casts else 0
        self.overhead_bytes = self.fixed.nbytes + casting_bytes + surroundings.workspace_bytes

    def rows_bytes(self, traces: Mapping[str, Trace]) -> int:
        """Return the most that rows of tables take in a call."""
        return rows_bytes(self.parts.tables, self._weights, traces.values())

    def order(self, trace: Trace) -> tuple[int, ...]:
        """Return the units that a call visits, one after another."""
        return visits([call.leaf for call in trace.all_calls], self.units)

    def work(self, trace: Trace | None, rates: Rates) -> Work:
        """Return what a call asks of the planner; without a trace, every unit once."""
        order = (self.order(trace) if trace is not None else ()) or tuple(range(len(self.units)))
        seconds = defaultdict[str, float](float)
        if trace is not None:
            for call in trace.all_calls:
                seconds[call.leaf] += rates.call_seconds(call)
        whole = [
            sum(max(seconds[leaf.name], rates.seconds(0, leaf.nbytes)) for leaf in unit.leaves) for unit in self.units
        ]
        sizes = tuple(image.nbytes for image in self.images)
        stored = tuple(image.stored_bytes for image in self.images)
        per_visit = tuple(whole[unit] / order.count(unit) for unit in order)
        if not self._surroundings.copies:
            return Work(sizes, per_visit, order, rates.read, stored=stored)
        return Work(sizes, per_visit, order, rates.read, rates.copy, max((*sizes, self.fixed.nbytes)), stored)

    def minimum_bytes(self) -> int:
        """Return the least bytes for weights with which the module can run."""
        return self.overhead_bytes + minimum_bytes(self.work(None, Rates()))

    def minimum_host_bytes(self) -> int:
        """Return the least host memory that the module needs beside a device."""
        return minimum_host_bytes(self.work(None, Rates()))


def unit_bytes_of(weights: Mapping[str, Weight]) -> int:
    """Return the size of units into which a module of these weights is cut."""
    total = sum(weight.nbytes for weight in weights.values())
    return max(min(UNIT_BYTES, total // _FEWEST_UNITS), 1)


def find_parts(
    modules: Mapping[str, torch.nn.Module],
    places: Places,
    weights: Mapping[str, Weight],
    traces: Mapping[str, Trace],
    table_bytes: int | None,
    block_of: Callable[[torch.nn.Module], torch.nn.Module] = lambda part: part,
) -> Parts:
    """Return the leaves in the order of the traces, then those that no trace has seen; and what does not move.

    Args:
        modules: by name, a network's own.
        traces: by entry.
        table_bytes: tables larger than this are read by rows; None for none.
        block_of: a module -> the one as a part of which it computes.
    """
    own: dict[torch.nn.Module, list[str]] = {}
    for name, holders in places.items():
        for owner, _ in holders:
            own.setdefault(block_of(owner), []).append(name)
    fixed = {name for found in traces.values() for name in found.fixed}
    for part in modules.values():
        if part in own and any(inner in own for inner in part.modules() if inner is not part):
            fixed.update(own[part])
    tables = {
        name
        for name, holders in places.items()
        if table_bytes is not None and weights[name].nbytes > table_bytes and name not in fixed
        if all(is_lookup(owner) and block_of(owner) is owner for owner, _ in holders) and has_rows(weights[name])
    }
    ran = (call.leaf for found in traces.values() for call in found.calls)
    leaves = []
    for name in dict.fromkeys((*ran, *(name for name, part in modules.items() if part in own))):
        parameters = tuple(dict.fromkeys(p for p in own.get(modules[name], ()) if p not in fixed and p not in tables))
        if parameters:
            leaves.append(Leaf(name, parameters, sum(weights[p].nbytes for p in parameters)))
    readers = {name: own[part][0] for name, part in modules.items() if part in own and own[part][0] in tables}
    return Parts(tuple(leaves), frozenset(fixed), readers)


def named_as_before(
    found: Trace,
    now: Mapping[str, torch.nn.Module],
    names: Mapping[torch.nn.Module, str],
    places: Places,
    block_of: Callable[[torch.nn.Module], torch.nn.Module] = lambda part: part,
) -> Trace:
    """Give leaves and parameters the names that they had before adapters wrapped them, and drop the adapters'.

    Args:
        now: modules by the names that the trace has.
        names: module -> the name that it had.
        block_of: a module -> the one as a part of which it computes.
    """
    homes = {name: block_of(part) for name, part in now.items()}

    def renamed(calls: Iterable[Call]) -> tuple[Call, ...]:
        placed = ((homes[call.leaf], call) for call in calls)
        return tuple(replace(call, leaf=names[home]) for home, call in placed if home in names)

    fixed = set()
    for name in found.fixed:
        path, _, attribute = name.rpartition(".")
        fixed |= {
            old
            for old, holders in places.items()
            if any(part is now[path] and other == attribute for part, other in holders)
        }
    return Trace(renamed(found.calls), found.activation_bytes, frozenset(fixed), renamed(found.backward))


def parameter_places(module: torch.nn.Module) -> dict[str, list[tuple[torch.nn.Module, str]]]:
    """Return for each parameter, under the first of its names, the modules that hold it and its name in each."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[torch.nn.Module, str]]] = {}
    for prefix, part in module.named_modules():
        for attribute, parameter in part._parameters.items():
            if parameter is not None:
                name = names.setdefault(id(parameter), f"{prefix}{'.' if prefix else ''}{attribute}")
                places.setdefault(name, []).append((part, attribute))
    return places
