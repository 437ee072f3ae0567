"""One module under a memory limit: resident units, slots for the rest, reads that run while the module computes.

Parameters are bound once, to views of static memory: of a resident unit's own arena, or of the slot that the unit
shares with others. Hooks on the leaves say which unit is needed. When the module goes on to the next unit, the slot of
the one before is free, and the unit that it will be needed for next is read into it. A unit that is not where it is
needed, because the module took another path than in the trace, is read at once: slower, never wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lading.checkpoint.arena import Arena, Scratch
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import PIECE_BYTES, THREADS, Reading
from lading.errors import CheckpointError, MemoryLimitError
from lading.memory.image import Image, Weight
from lading.memory.planner import Placement, Work, minimum_bytes, next_in_slot, place
from lading.memory.trace import Trace
from lading.memory.units import Leaf, Unit, make_units, visits
from lading.sizes import format_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rates:
    """What predictions are made with, and what measurements replace.

    Attributes:
        read: bytes per second from where streamed weights come.
        compute: floating-point operations per second.
    """

    read: float = 1.5e9
    compute: float = 1e11


@dataclass
class Statistics:
    """What streaming did since the module was loaded.

    Attributes:
        calls: of the module.
        read_bytes: that were asked for from the disk.
        hits: units that were there when they were needed.
        late: units whose read was on the way.
        diverged: units that had to be read at once, as the module took another path than in the trace.
        waited_seconds: that computation stood still for reads.
    """

    calls: int = 0
    read_bytes: int = 0
    hits: int = 0
    late: int = 0
    diverged: int = 0
    waited_seconds: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """The share of units that were there when they were needed."""
        needed = self.hits + self.late + self.diverged
        return self.hits / needed if needed else 1.0


@dataclass
class _Seat:
    """Where one unit is computed from, for as long as the placement holds."""

    unit: int
    arena: Arena
    image: Image
    slot: int | None
    reading: Reading | None = None


@dataclass
class _Slot:
    arena: Arena
    unit: int | None = None


@dataclass(frozen=True)
class _Route:
    """One entry's way through the units."""

    visits: tuple[int, ...]
    following: Mapping[int, int]


class Engine:
    """Computes one module within so many bytes for its weights.

    Args:
        module: whose parameters are on the meta device, or anything that the weights replace.
        places: parameter name -> the modules that hold it, see `parameter_places`; they stay where adapters wrap them.
        weights: parameter name -> where its bytes are.
        readers: of the files.
        leaves: in the order in which they run.
        fixed: names of parameters that must always be there.
        unit_bytes: see `make_units`.
        lock: held while the module computes; modules that take turns share one.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        places: Mapping[str, list[tuple[torch.nn.Module, str]]],
        weights: Mapping[str, Weight],
        readers: Mapping[Path, FileReader],
        leaves: tuple[Leaf, ...],
        fixed: frozenset[str],
        unit_bytes: int,
        lock: threading.RLock | None = None,
    ) -> None:
        self.module = module
        self.statistics = Statistics()
        self._weights = weights
        self._readers = readers
        self._lock = lock or threading.RLock()
        self._scratch = Scratch(min(PIECE_BYTES, max(unit_bytes // 8, 1 << 16)))
        self.units: tuple[Unit, ...] = make_units(leaves, unit_bytes)
        self._images = [Image({name: weights[name] for name in unit.parameters}) for unit in self.units]
        self._fixed_image = Image({name: weights[name] for name in sorted(fixed)})
        casts = any(image.casts for image in (*self._images, self._fixed_image))
        self._staging = THREADS * self._scratch.nbytes if casts else 0
        self._fixed = _Seat(-1, Arena(0, self._fixed_image.nbytes), self._fixed_image, None)
        self._routes: dict[str, _Route] = {}
        self._route: _Route | None = None
        self._visit = -1
        self._seats: list[_Seat] = []
        self._slots: list[_Slot] = []
        self.placement: Placement | None = None
        self.active = False
        self._home = {leaf.name: number for number, unit in enumerate(self.units) for leaf in unit.leaves}
        self._places = places
        self.on_activate: Callable[[], None] = lambda: None
        self._bind(self._fixed)

    def read(self, name: str) -> torch.Tensor:
        """Read a parameter from its file, whatever is in memory."""
        weight = self._weights[name]
        return self._readers[weight.info.file].tensor(weight.info, weight.dtype)

    @property
    def overhead_bytes(self) -> int:
        """What the weights take beside placed units: fixed parameters, and staging for casts."""
        return self._fixed_image.nbytes + self._staging

    def minimum_bytes(self) -> int:
        """Return the least bytes for weights with which the module can run."""
        return self.overhead_bytes + minimum_bytes(self._work(tuple(range(len(self.units))), {}, Rates()))

    def set_placement(self, nbytes: int, traces: Mapping[str, Trace], rates: Rates) -> Placement:
        """Place the units anew within so many bytes for weights; nothing is read before the module runs.

        Args:
            traces: by entry; the first is the one that is predicted.

        Raises:
            MemoryLimitError: they do not fit.
        """
        with self._lock:
            orders = {entry: visits([call.leaf for call in trace.calls], self.units) for entry, trace in traces.items()}
            entry = next(iter(traces), None)
            order = orders[entry] if entry is not None else tuple(range(len(self.units)))
            flops = {call.leaf: call.flops for call in traces[entry].calls} if entry is not None else {}
            placement = place(self._work(order, flops, rates), nbytes - self.overhead_bytes)
            if placement is None:
                raise MemoryLimitError(
                    f"{type(self.module).__name__} needs {format_size(self.minimum_bytes())} for its weights",
                    self.minimum_bytes(),
                )
            self._routes = {e: _Route(o, next_in_slot(o, placement)) for e, o in orders.items()}
            self._route = self._routes.get(entry) if entry is not None else None
            if self.placement is None or _seating(placement) != _seating(self.placement):
                self.suspend()
                self._seat(placement)
            self.placement = placement
            return placement

    @contextmanager
    def entry(self, name: str) -> Iterator[None]:
        """Hold the module for one call of a method; other threads wait."""
        with self._lock:
            self._route = self._routes.get(name, self._route)
            self._visit = -1
            self.statistics.calls += 1
            self.resume()
            self._await(self._fixed)
            try:
                yield
            finally:
                self._go_on(-1)

    def suspend(self) -> None:
        """Give back the memory of all weights; the next call reads what it needs."""
        with self._lock:
            for seat in (*self._seats, self._fixed):
                if seat.reading is not None:
                    seat.reading.cancel()
                    seat.reading = None
                if seat.slot is None:
                    seat.arena.discard()
            for slot in self._slots:
                slot.unit = None
                slot.arena.discard()
            self.active = False

    def resume(self) -> None:
        """Start to read what stays and what comes first; the module may be called at once."""
        with self._lock:
            if self.active or self.placement is None:
                return
            self.on_activate()
            self.active = True
            self._read(self._fixed)
            order = self._route.visits if self._route is not None else range(len(self.units))
            for unit in dict.fromkeys((*order, *range(len(self.units)))):
                seat = self._seats[unit]
                if seat.slot is None:
                    self._read(seat)
                elif self._slots[seat.slot].unit is None:
                    self._slots[seat.slot].unit = unit
                    self._read(seat)

    def release(self) -> None:
        """Stop and give everything back; the module keeps parameters without values."""
        with self._lock:
            self.suspend()
            for image in (*self._images, self._fixed_image):
                for name in image.names:
                    self._set(name, torch.empty_like(self._now(name), device="meta"))
            self._seats, self._slots = [], []
            for reader in self._readers.values():
                reader.close()

    def _work(self, order: tuple[int, ...], flops: Mapping[str, int], rates: Rates) -> Work:
        seconds = []
        for unit in order:
            count = sum(flops.get(leaf.name, 0) for leaf in self.units[unit].leaves)
            seconds.append(max(count / rates.compute, 1e-6) / max(order.count(unit), 1))
        return Work(tuple(image.nbytes for image in self._images), tuple(seconds), order, rates.read)

    def _seat(self, placement: Placement) -> None:
        """Make the memory and bind every parameter to its place in it."""
        self._slots = [_Slot(Arena(0, placement.slot_bytes)) for _ in placement.slots]
        self._seats = []
        for unit, image in enumerate(self._images):
            slot = placement.slot_of.get(unit)
            arena = Arena(0, image.nbytes) if slot is None else self._slots[slot].arena
            self._seats.append(_Seat(unit, arena, image, slot))
            self._bind(self._seats[-1])

    def _bind(self, seat: _Seat) -> None:
        for name, tensor in seat.image.tensors(seat.arena, 0).items():
            self._set(name, tensor)

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        for owner, attribute in self._places[name]:
            owner._parameters[attribute] = parameter

    def _now(self, name: str) -> torch.Tensor:
        owner, attribute = self._places[name][0]
        parameter = owner._parameters[attribute]
        assert parameter is not None
        return parameter

    def need(self, name: str) -> None:
        """Have the weights of a module in their place, and let go of the unit before.

        Raises:
            CheckpointError: they cannot be read any more.
        """
        with self._lock:
            self.resume()
            self._await(self._fixed)
            if name in self._home:
                self._need(self._home[name])

    def _need(self, unit: int) -> None:
        self._go_on(unit)
        seat = self._seats[unit]
        if seat.slot is not None and self._slots[seat.slot].unit != unit:
            self._displace(seat)
        elif seat.reading is None or seat.reading.done:
            self.statistics.hits += 1
        else:
            self.statistics.late += 1
        self._await(seat)

    def _go_on(self, unit: int) -> None:
        """Move along the route; the slot of the visit that ends gets what it holds next."""
        route = self._route
        if route is None or (self._visit >= 0 and route.visits[self._visit] == unit):
            return
        if self._visit >= 0 and self._visit in route.following:
            seat = self._seats[route.following[self._visit]]
            assert seat.slot is not None
            self._slots[seat.slot].unit = seat.unit
            self._read(seat)
        places = range(self._visit + 1, len(route.visits))
        self._visit = next((place for place in places if route.visits[place] == unit), -1)

    def _displace(self, seat: _Seat) -> None:
        assert seat.slot is not None
        slot = self._slots[seat.slot]
        if slot.unit is not None:
            before = self._seats[slot.unit]
            if before.reading is not None:
                before.reading.cancel()
                before.reading = None
        _log.info(
            "%s: %s is read at once: it was not expected now",
            type(self.module).__name__,
            self.units[seat.unit].leaves[0].name,
        )
        self.statistics.diverged += 1
        slot.unit = seat.unit
        self._read(seat)

    def _read(self, seat: _Seat) -> None:
        self.statistics.read_bytes += seat.image.nbytes
        seat.reading = Reading(seat.image.tasks(seat.arena, 0, self._readers, self._scratch))

    def _await(self, seat: _Seat) -> None:
        if seat.reading is None:
            return
        start = time.perf_counter()
        try:
            seat.reading.wait()
        except BaseException as error:
            seat.reading = None
            if seat.slot is not None:
                self._slots[seat.slot].unit = None
            else:
                self.suspend()
            if isinstance(error, CheckpointError):
                raise CheckpointError(f"{error} (it was read for {seat.image.names[0]})") from None
            raise
        finally:
            self.statistics.waited_seconds += time.perf_counter() - start
        seat.reading = None


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


def _seating(placement: Placement) -> tuple[Any, ...]:
    return placement.resident, placement.slots, placement.slot_bytes
