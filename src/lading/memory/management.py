"""A module under one memory limit: traced, placed, watched over while it is called."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from lading import events
from lading.checkpoint.header import FileInventory
from lading.errors import LadingError, MemoryLimitError
from lading.memory.accelerator import DeviceHome
from lading.memory.allocator import return_freed_memory
from lading.memory.engine import Engine, bind_parameter
from lading.memory.files import WeightFiles
from lading.memory.home import Home
from lading.memory.host import HostHome
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.memory.outline import (
    Outline,
    Surroundings,
    find_parts,
    named_as_before,
    parameter_places,
    unit_bytes_of,
)
from lading.memory.plan import ModulePlan
from lading.memory.rates import Rates
from lading.memory.signature import Signature
from lading.memory.stage import Turn
from lading.memory.statistics import Statistics
from lading.memory.tables import Table
from lading.memory.trace import Trace, trace
from lading.memory.watch import Change, Watch
from lading.sizes import format_size

_log = logging.getLogger(__name__)

_ATTRIBUTE = "lading_manager"
Examples = Mapping[str, tuple[tuple[Any, ...], Mapping[str, Any]]]
"""Entry -> the arguments of a call, on any device: only shapes and dtypes count."""


class Manager:
    """Keeps one module's weights, and what it computes with, within limits; see `lading.manage`.

    Attributes:
        module: what it manages; call it as ever.
        limits: that it shares with the modules with which it takes turns.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        weights: Mapping[str, Weight],
        inventories: Iterable[FileInventory],
        limits: Limits,
        examples: Examples | None = None,
    ) -> None:
        """Take a module over.

        Raises:
            MemoryLimitError: a limit is too small; no weight has been read.
        """
        return_freed_memory()
        self.module = module
        self._unit_bytes = unit_bytes_of(weights)
        self._files = WeightFiles(weights, inventories, self._unit_bytes)
        self.limits = limits
        device = limits.device
        self._home: Home = HostHome(self._files) if device is None else DeviceHome(device, self._files)
        self._stage = limits.stage
        self._traces: dict[str, Trace] = {}
        self._known: dict[str, list[Signature]] = {}
        self._engine: Engine | None = None
        self._plan: ModulePlan | None = None
        self._places = {name: places for name, places in parameter_places(module).items() if name in weights}
        self._modules = dict(module.named_modules())
        self._names = {part: name for name, part in self._modules.items()}
        self._added_bytes = self._buffer_bytes = 0
        self._rates = limits.rates
        self._refined = self._assumed = False
        self._planned_for: tuple[int, ...] = ()
        self._watch = Watch(module, self._names, self._places, self, self._stage.lock)
        self._stage.join(self)
        try:
            for entry, (args, kwargs) in (examples or {}).items():
                self._learn(entry, args, kwargs)
            self._assumed = bool(self._traces)
            self._replan()
        except BaseException:
            self.release()
            raise
        module.__dict__[_ATTRIBUTE] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Manager:
        """Copies of the module for a trace share its manager."""
        return self

    @property
    def device(self) -> torch.device:
        """That computes."""
        return self._home.device

    @property
    def rates(self) -> Rates:
        """What plans predict with: known rates of this machine, and from the third call on those of the first two."""
        return self._rates

    @property
    def plan(self) -> ModulePlan:
        """Where the weights live now; `print` it."""
        assert self._plan is not None
        return self._plan

    @property
    def active(self) -> bool:
        """Whether it is the module's turn, and its weights take memory."""
        return self._engine is not None and self._engine.active

    @property
    def lasting_bytes(self) -> int:
        """What the module takes also while another one computes: buffers and adapters."""
        return self._added_bytes + self._buffer_bytes

    @property
    def held_bytes(self) -> int:
        """That weights take now where the module computes."""
        return 0 if self._engine is None else self._engine.held_bytes

    @property
    def files(self) -> frozenset[Path]:
        """That the weights are read from."""
        return frozenset(run.file for weight in self._files.weights.values() for run in weight.origin.runs)

    @property
    def host_bytes(self) -> int:
        """Of host memory that is held beside a device."""
        return self._home.host_bytes

    def stats(self) -> Statistics:
        """What streaming did so far."""
        return self._require_engine().statistics

    def set_limit(self, memory_limit: int | str, host_memory_limit: int | str | None = None) -> None:
        """Keep other limits from the next call on, for all modules that take turns.

        Raises:
            MemoryLimitError: one is too small; the limits before stay.
        """
        before = replace(self.limits)
        self.limits.move(memory_limit, host_memory_limit)
        try:
            self._replan()
        except MemoryLimitError:
            self.limits.memory, self.limits.host_memory = before.memory, before.host_memory
            raise

    def expect(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, entry: str = "forward"
    ) -> None:
        """Plan for a call before it is made, where gradients are enabled for its way back too; no weight is read.

        Raises:
            MemoryLimitError: the limit is too small for it.
        """
        with self._stage.lock:
            self._notice_changes()
            self._learn(entry, args, kwargs or {})

    def suspend(self) -> None:
        """Give the weights' memory back until the next call."""
        if self._engine is not None:
            self._engine.suspend()

    def forget(self) -> None:
        """Give host memory beside a device back until the next call."""
        if self._engine is not None:
            self._engine.forget()

    def prefetch(self, nbytes: int) -> None:
        """Start to bring weights that stay, at most so many bytes, before the module is called."""
        if self._engine is not None:
            self._engine.prefetch(nbytes)

    def release(self, weights: bool = False) -> None:
        """End the management: threads, files and memory go.

        Args:
            weights: read them all and leave a plain module, on the device that computed. Else its parameters have no
                values any more.
        """
        kept = {name: self.read(name) for name in self._places} if weights else {}
        self._watch.end()
        if self._engine is not None:
            self._engine.release()
            self._engine = None
        self._home.close()
        self._files.close()
        for name, tensor in kept.items():
            bind_parameter(self._places[name], tensor.to(self._home.device))
        self.module.__dict__.pop(_ATTRIBUTE, None)

    @contextmanager
    def call(self, entry: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Hold the module for one call of an entry; plan first where the call is larger than any before."""
        with self._stage.lock:
            self._notice_changes()
            self._learn(entry, args, kwargs)
            self._refine()
            with self._require_engine().entry(entry):
                yield

    def need(self, name: str, inputs: Iterable[Any] = ()) -> None:
        """Have a part's weights in their place; of a table, the rows that its inputs ask for."""
        with self._stage.lock:
            self._require_engine().need(name, inputs)

    def is_bound(self, parameter: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the one that a parameter's weights come to."""
        return tensor is self._require_engine().bound[parameter] and tensor.device == self._home.device

    def read(self, parameter: str) -> torch.Tensor:
        """Read a parameter from its file, on the CPU, whatever is in memory."""
        return self._files.read(parameter)

    def refuse(self, change: Change) -> None:
        """What `to`, `half` and their like come to: nothing where nothing changes, else an error.

        Raises:
            LadingError: the module would move or change its dtype, which the limit does not allow for.
        """
        for dtype in {weight.dtype for weight in self._files.weights.values()}:
            probe = torch.empty(0, dtype=dtype, device=self._home.device)
            changed = change(probe)
            if changed.dtype != dtype or changed.device != probe.device:
                raise LadingError(
                    f"{type(self.module).__name__} is kept under a memory limit in {dtype} on {probe.device}: load it "
                    f"with the dtype and device that it is to have, or end the limit with manager_of(...).release()"
                )

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise LadingError(f"{type(self.module).__name__} was released from its memory limit: load it again")
        return self._engine

    def _learn(self, entry: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Trace an entry with inputs that are larger, or other, than any before, and plan anew."""
        backward = self._goes_back(args, kwargs)
        signature = Signature.of(args, kwargs, backward)
        if any(known.covers(signature) for known in self._known.get(entry, ())):
            return
        if self._assumed and self._engine is not None:
            self._forget_traces()  # they were examples, and this is a call
        try:
            with events.span("trace", entry, self.module):
                found = self._translated(trace(self.module, args, kwargs, entry, self._home.device, backward))
        except LadingError as error:
            _log.warning("%s: the plan does not count activations", error)
            self._known.setdefault(entry, []).append(signature)
            return
        before = self._traces.get(entry)
        if before is not None:
            activation = max(before.activation_bytes, found.activation_bytes)
            found = replace(found, activation_bytes=activation, fixed=before.fixed | found.fixed)
        self._traces[entry] = found
        self._refined = False
        try:
            if self._engine is not None:
                self._replan()
        except MemoryLimitError:
            del self._traces[entry]
            if before is not None:
                self._traces[entry] = before
            self._replan()
            raise
        self._known.setdefault(entry, []).append(signature)

    def _goes_back(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is one that gradients come back through; examples are none."""
        if self._engine is None or not torch.is_grad_enabled():
            return False
        frozen = set(map(id, self._engine.bound.values()))
        tensors = (value for value in tree_iter((args, dict(kwargs))) if isinstance(value, torch.Tensor))
        added = (parameter for parameter in self.module.parameters() if id(parameter) not in frozen)
        return any(tensor.requires_grad for tensor in itertools.chain(tensors, added))

    def _forget_traces(self) -> None:
        self._known.clear()
        self._traces.clear()
        self._assumed = False

    def _translated(self, found: Trace) -> Trace:
        """Give leaves and parameters the names that they had before adapters wrapped them, and drop the adapters'.

        What runs inside a compiled block counts as the block's.
        """
        now = dict(self.module.named_modules())
        return named_as_before(found, now, self._names, self._places, self._watch.block_of)

    def _notice_changes(self) -> None:
        """Plan anew when limits moved, blocks were compiled, or parameters that no checkpoint holds came or went."""
        try:
            found = self._watch.survey()
        except LadingError:
            self.suspend()  # what was merged is read again
            raise
        if found.added_bytes != self._added_bytes or found.compiled:
            self._added_bytes = found.added_bytes
            self._forget_traces()
        elif self._planned_for == self._circumstances():
            return
        self._replan()

    def _refine(self) -> None:
        """Plan with what was measured, once, after the second call of a plan."""
        engine = self._require_engine()
        if self._refined or not engine.is_settled:
            return
        self._rates = replace(
            self._rates.slower(engine.slowness),
            read=self._files.meter.bytes_per_second or self._rates.read,
            copy=self._home.copy_rate or self._rates.copy,
        )
        self._refined = True
        self._replan(reluctant=True)

    def _circumstances(self) -> tuple[int, ...]:
        return self.limits.memory, self.limits.host_memory, self._stage.lasting_bytes()

    def _replan(self, reluctant: bool = False) -> None:
        self._stage.send_off_others(self)  # what they hold was spare
        self._buffer_bytes = sum(buffer.nbytes for buffer in self.module.buffers() if not buffer.is_meta)
        weights = self._files.weights
        engine, home = self._engine, self._home
        table_bytes = None if home.copies else self._unit_bytes
        parts = find_parts(self._modules, self._places, weights, self._traces, table_bytes, self._watch.block_of)
        if engine is None or engine.outline.parts != parts:
            if engine is not None:
                engine.release()
            surroundings = Surroundings(home.copies, home.casting_bytes, home.workspace_bytes)
            engine = self._engine = Engine(
                self.module,
                self._places,
                home,
                Outline(parts, weights, self._unit_bytes, surroundings),
                {name: Table(name, self._files) for name in parts.tables.values()},
                self._stage.lock,
                partial(_enter, weakref.ref(self)),
            )
        activation = max((trace.activation_bytes for trace in self._traces.values()), default=0)
        memory, host_memory, lasting = self._circumstances()
        others = lasting + engine.outline.rows_bytes(self._traces)
        placement = engine.set_placement(
            memory - activation - others, host_memory, self._traces, self._rates, reluctant
        )
        if placement is None:
            raise self._too_small(engine, activation, others)
        self._planned_for = memory, host_memory, lasting
        others += engine.outline.overhead_bytes
        self._plan = ModulePlan(type(self.module).__name__, memory, activation, others, placement, engine.units)

    def _too_small(self, engine: Engine, activation: int, others: int) -> MemoryLimitError:
        name, limits = type(self.module).__name__, self.limits
        host_minimum = engine.outline.minimum_host_bytes()
        if host_minimum > limits.host_memory:
            return MemoryLimitError(
                f"{name} cannot run with {format_size(limits.host_memory)} of host memory: its weights pass through "
                f"{format_size(host_minimum)} on their way to the device: give it at least {host_minimum} bytes",
                host_minimum,
            )
        minimum = engine.outline.minimum_bytes() + activation + others
        return MemoryLimitError(
            f"{name} cannot run in {format_size(limits.memory)}: it needs {format_size(activation)} for activations "
            f"and {format_size(minimum - activation)} for weights that pass through: give it at least {minimum} bytes, "
            "or smaller inputs",
            minimum,
        )


def _enter(reference: weakref.ref[Manager]) -> None:
    """It is a module's turn."""
    manager = reference()
    if manager is not None:
        limits, plan = manager.limits, manager.plan
        turn = Turn(limits.memory - plan.peak_bytes, plan.placement.host_nbytes, limits.host_memory)
        manager._stage.enter(manager, turn)


def manager_of(module: torch.nn.Module) -> Manager:
    """Return what keeps a module within its limit.

    Raises:
        LadingError: the module was not loaded under a limit.
    """
    manager = module.__dict__.get(_ATTRIBUTE)
    if not isinstance(manager, Manager):
        raise LadingError(f"{type(module).__name__} is under no memory limit: load it with memory_limit=...")
    return manager
