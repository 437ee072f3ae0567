"""One module under a memory limit: resident units, slots for the rest, weights that come while the module computes.

Parameters are bound once, to views of static memory: of a resident unit's own store, or of the slot that the unit
shares with others. Hooks on the leaves say which unit is needed. When the module goes on to the next unit, the slot of
the one before is free, and the unit that it will be needed for next is brought into it. A unit that is not where it is
needed, because the module took another path than in the trace, is brought at once: slower, never wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from lading import events
from lading.errors import CheckpointError
from lading.memory.holdings import Holdings
from lading.memory.home import Arrival, Home
from lading.memory.image import Image, Store
from lading.memory.outline import Outline, Places
from lading.memory.planner import Placement, next_in_slot, place, simulate
from lading.memory.rates import Rates
from lading.memory.statistics import CallStatistics, Statistics, UnitStatistics
from lading.memory.tables import Table
from lading.memory.trace import Trace

_WORTHWHILE = 0.95
"""Of a call's time: what is gained by moving units has to make up for their being read again."""

_log = logging.getLogger(__name__)


@dataclass
class _Seat:
    """Where one unit is computed from.

    Attributes:
        unit: its number; -1 for the parameters that must always be there.
        slot: the number of the slot that it shares; None if the store is its own.
        filled: whether its weights are in the store, or on their way.
    """

    unit: int
    image: Image
    store: Store
    slot: int | None = None
    filled: bool = False
    arrival: Arrival | None = None


@dataclass(frozen=True)
class _Route:
    """One entry's way through the units.

    Attributes:
        returns: whether a backward pass goes on where the call ends.
    """

    visits: tuple[int, ...]
    following: Mapping[int, int]
    returns: bool = False


class Engine:
    """Computes one module from a placement of its weights.

    Args:
        module: whose parameters are on the meta device, or anything that the weights replace.
        places: see `parameter_places`; they stay where adapters wrap them.
        outline: the module's units.
        tables: by parameter, those of the outline.
        lock: held while the module computes; modules that take turns share one.
        on_activate: called before the first weight comes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        places: Places,
        home: Home,
        outline: Outline,
        tables: Mapping[str, Table],
        lock: threading.RLock,
        on_activate: Callable[[], None],
    ) -> None:
        self.module = module
        self.statistics = Statistics()
        self.outline = outline
        self.units = outline.units
        self.placement: Placement | None = None
        self.active = False
        self.bound: dict[str, torch.nn.Parameter] = {}
        self._places = places
        self._home = home
        self._lock = lock
        self._on_activate = on_activate
        self._images = outline.images
        self._tables = dict(tables)
        self._fixed = _Seat(-1, outline.fixed, home.store(outline.fixed.nbytes))
        self._unit_of = {leaf.name: number for number, unit in enumerate(self.units) for leaf in unit.leaves}
        self._routes: dict[str, _Route] = {}
        self._route = _Route((), {})
        self._visit = -1
        self._calls = 0
        self._predicted = "", 1.0
        self._seats: list[_Seat] = []
        self._slots: list[Store] = []
        self._holds: list[int | None] = []
        self._held = Holdings(module)
        self._bind(self._fixed)
        for name, table in self._tables.items():
            self.bound[name] = bind_parameter(self._places[name], table.tensor)

    def set_placement(
        self, nbytes: int, host_nbytes: int, traces: Mapping[str, Trace], rates: Rates, reluctant: bool = False
    ) -> Placement | None:
        """Place the units anew within so many bytes; units that stay where they are keep their weights.

        Args:
            nbytes: for weights where the module computes.
            host_nbytes: of host memory beside it.
            traces: by entry; the first is the one that is predicted.
            reluctant: keep the placement before, which must fit, unless another one is clearly faster.

        Returns:
            None if they do not fit, and all stays as it is.
        """
        with self._lock:
            orders = {entry: self.outline.order(trace) for entry, trace in traces.items()}
            entry = next(iter(traces), "")
            work = self.outline.work(traces.get(entry), rates)
            placement = place(work, nbytes - self.outline.overhead_bytes, host_nbytes)
            if placement is None:
                return None
            if reluctant and self.placement is not None:
                seconds = simulate(work, self.placement)
                if placement.seconds > _WORTHWHILE * seconds:
                    placement = replace(self.placement, seconds=seconds)
            self._routes = {
                entry: _Route(order, next_in_slot(order, placement), bool(traces[entry].backward))
                for entry, order in orders.items()
            }
            self._visit = -1
            self._route = self._routes.get(entry, self._route)
            if self.placement is None or _seating(placement) != _seating(self.placement):
                self._seat(placement)
            self.placement = placement
            self._predicted = entry, sum(work.seconds)
            self._calls = 0
            return placement

    @contextmanager
    def entry(self, name: str) -> Iterator[None]:
        """Hold the module for one call of a method; other threads wait."""
        with self._lock:
            statistics, before = self.statistics, replace(self.statistics)
            start = time.perf_counter()
            self._go_on(-1)
            self._route = self._routes.get(name, self._route)
            statistics.calls += 1
            self.resume()
            self._await(self._fixed)
            try:
                yield
            finally:
                if not self._route.returns:
                    self._go_on(-1)
                seconds = time.perf_counter() - start
                self._calls += 1
                statistics.recent.append(CallStatistics.between(before, statistics, name, seconds))

    @property
    def held_bytes(self) -> int:
        """That weights take now where the module computes."""
        return self._held.nbytes

    @property
    def is_settled(self) -> bool:
        """Whether the last call, the second of a placement, was as others will be.

        The first one also takes what only first calls do: memory is new, kernels are made. Calls that a backward pass
        follows tell nothing: only their own end is known.
        """
        return self._calls == 2 and self.statistics.recent[-1].entry == self._predicted[0] and not self._route.returns

    @property
    def slowness(self) -> float:
        """How many times longer than predicted the last call computed; 1 on a device, which goes on when it returns."""
        if self._home.copies:
            return 1.0
        last = self.statistics.recent[-1]
        return max(last.seconds - last.waited_seconds, 1e-6) / self._predicted[1]

    def suspend(self) -> None:
        """Give back the memory of all weights; the next call brings what it needs."""
        with self._lock:
            for seat in (*self._seats, self._fixed):
                self._empty(seat)
            for store in self._slots:
                self._held.give_back(store)
            for table in self._tables.values():
                table.discard()
            self._visit = -1
            self._home.rest()
            self.active = False

    def resume(self) -> None:
        """Start to bring what stays and what comes first; the module may be called at once."""
        with self._lock:
            if self.placement is None:
                return
            if not self.active:
                self._on_activate()
                self.active = True
            for seat in self._first_needed():
                if not seat.filled and (seat.slot is None or self._holds[seat.slot] is None):
                    self._bring(seat)

    def prefetch(self, nbytes: int) -> None:
        """Start to bring what stays, as much as so many bytes hold, while another module computes."""
        with self._lock:
            for seat in self._first_needed():
                if seat.slot is None and not seat.filled:
                    nbytes -= seat.image.nbytes
                    if nbytes < 0:
                        return
                    self._bring(seat)

    def forget(self) -> None:
        """Give back host memory beside a device, which is filled again as weights pass through it."""
        with self._lock:
            self.suspend()
            self._home.forget()

    def release(self) -> None:
        """Stop and give everything back; the module keeps parameters without values."""
        with self._lock:
            self.suspend()
            moved = (name for image in (*self._images, self._fixed.image) for name in image.names)
            for name in (*moved, *self._tables):
                owner, attribute = self._places[name][0]
                parameter = owner._parameters[attribute]
                assert parameter is not None
                bind_parameter(self._places[name], torch.empty_like(parameter, device="meta"))
            self._seats, self._slots, self._holds, self._tables = [], [], [], {}
            self._home.host(())

    def need(self, leaf: str, inputs: Iterable[Any] = ()) -> None:
        """Have the weights of a module in their place, and let go of the unit before.

        Args:
            inputs: of the module, where it is called: of a table, only the rows that they ask for come.

        Raises:
            CheckpointError: they cannot be read any more.
        """
        with self._lock:
            self.resume()
            self._await(self._fixed)
            if leaf in self.outline.parts.tables:
                self._look_up(self.outline.parts.tables[leaf], inputs)
            if leaf not in self._unit_of:
                return
            unit = self._unit_of[leaf]
            self._go_on(unit)
            seat, statistics = self._seats[unit], self.statistics.units[unit]
            if not seat.filled:
                self._bring_at_once(seat)
            elif seat.arrival is None or seat.arrival.done:
                statistics.hits += 1
                self.statistics.hits += 1
            else:
                statistics.late += 1
                self.statistics.late += 1
            self._await(seat)

    def _look_up(self, name: str, inputs: Iterable[Any]) -> None:
        start = time.perf_counter()
        for rows in inputs:
            if isinstance(rows, torch.Tensor) and not rows.is_floating_point():
                self.statistics.read_bytes += self._tables[name].read(rows)
        self.statistics.waited_seconds += time.perf_counter() - start

    def _seat(self, placement: Placement) -> None:
        """Make the memory and bind every parameter to its place in it; units that stay resident keep theirs."""
        kept = {seat.unit: seat for seat in self._seats if seat.slot is None and seat.unit in placement.resident}
        for seat in self._seats:
            if seat.unit not in kept:
                self._empty(seat)
                self._outdate(seat)
        for store in self._slots:
            self._held.give_back(store)
        self._slots = [self._home.store(nbytes) for nbytes in placement.slot_sizes]
        self._holds = [None] * len(self._slots)
        self._seats = []
        for unit, image in enumerate(self._images):
            slot = placement.slot_of.get(unit)
            if unit in kept:
                self._seats.append(kept[unit])
                continue
            store = self._home.store(image.nbytes) if slot is None else self._slots[slot]
            self._seats.append(_Seat(unit, image, store, slot))
            self._bind(self._seats[-1])
        self._home.host(self._images[unit] for unit in placement.hosted)
        self.statistics.units = tuple(UnitStatistics(unit.leaves[0].name) for unit in self.units)

    def _bind(self, seat: _Seat) -> None:
        for name, tensor in seat.image.tensors(seat.store).items():
            self.bound[name] = bind_parameter(self._places[name], tensor)
        seat.store.discard()

    def _outdate(self, seat: _Seat) -> None:
        """Let a backward pass fail that was to use weights from where they do not come to any more."""
        for name in seat.image.names:
            torch.autograd.graph.increment_version(self.bound[name])

    def _first_needed(self) -> Iterable[_Seat]:
        """Seats in the order of a call; those that it does not visit are brought when somebody asks for them."""
        order = self._route.visits or range(len(self.units))
        return (self._fixed, *(self._seats[unit] for unit in dict.fromkeys(order)))

    def _go_on(self, unit: int) -> None:
        """Move along the route; the slot of the visit that ends gets what it holds next."""
        route = self._route
        if self._visit >= 0 and route.visits[self._visit] == unit:
            return
        if self._visit in route.following:
            self._bring(self._seats[route.following[self._visit]])
        places = range(self._visit + 1, len(route.visits))
        self._visit = next((place for place in places if route.visits[place] == unit), -1)

    def _bring_at_once(self, seat: _Seat) -> None:
        _log.info(
            "%s: %s is brought at once: it was not expected now",
            type(self.module).__name__,
            self.units[seat.unit].leaves[0].name,
        )
        self.statistics.diverged += 1
        self.statistics.units[seat.unit].diverged += 1
        self._bring(seat)

    def _bring(self, seat: _Seat) -> None:
        """Start to fill a seat; whatever its slot held, or was to hold, goes."""
        nbytes = seat.image.nbytes
        if seat.slot is not None:
            assert self.placement is not None  # slots are a placement's
            nbytes = self.placement.slot_sizes[seat.slot]
            held = self._holds[seat.slot]
            if held is not None:
                self._empty(self._seats[held])
            self._holds[seat.slot] = seat.unit
        if self._home.reads(seat.image):
            self.statistics.read_bytes += seat.image.nbytes
        if self._home.copies:
            self.statistics.copied_bytes += seat.image.nbytes
        if seat.unit >= 0:
            self.statistics.units[seat.unit].brought += 1
        seat.arrival, seat.filled = self._home.bring(seat.image, seat.store), True
        self._held.take(seat.store, nbytes)

    def _empty(self, seat: _Seat) -> None:
        """Let a seat's weights go; a store of its own gives its memory back."""
        if seat.arrival is not None:
            seat.arrival.cancel()
            seat.arrival = None
        seat.filled = False
        if seat.slot is None:
            self._held.give_back(seat.store)
        elif self._holds[seat.slot] == seat.unit:
            self._holds[seat.slot] = None

    def _await(self, seat: _Seat) -> None:
        if seat.arrival is None:
            return
        start = time.perf_counter()
        try:
            with events.span("wait", seat.image.name, self.module, seat.image.nbytes, self._home.moment):
                seat.arrival.wait()
        except BaseException as error:
            self._empty(seat)
            if isinstance(error, CheckpointError):
                raise CheckpointError(f"{error} (it was read for {seat.image.name})") from None
            raise
        finally:
            waited = time.perf_counter() - start
            self.statistics.waited_seconds += waited
            if seat.unit >= 0:
                self.statistics.units[seat.unit].waited_seconds += waited
        seat.arrival = None


def bind_parameter(places: Iterable[tuple[torch.nn.Module, str]], tensor: torch.Tensor) -> torch.nn.Parameter:
    """Make a tensor the frozen parameter that modules hold, and return it."""
    places = tuple(places)
    owner, attribute = places[0]
    parameter = parameter_like(owner._parameters.get(attribute), tensor)
    for owner, attribute in places:
        owner._parameters[attribute] = parameter
    return parameter


def parameter_like(before: torch.Tensor | None, tensor: torch.Tensor) -> torch.nn.Parameter:
    """Return a tensor as a frozen parameter; where it takes the place of a library's own kind, which knows what the
    bytes in it are, as one of that kind."""
    if before is None or type(before) in (torch.Tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=False)
    parameter = torch.Tensor._make_subclass(type(before), tensor, False)
    parameter.__dict__.update(before.__dict__)
    return cast("torch.nn.Parameter", parameter)


def _seating(placement: Placement) -> tuple[object, ...]:
    return placement.resident, placement.slots, placement.hosted
