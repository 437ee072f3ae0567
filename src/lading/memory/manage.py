"""A module under one memory limit: traced, placed, watched over while it is called."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from lading.checkpoint.header import FileInventory
from lading.checkpoint.reader import FileReader
from lading.errors import LadingError, MemoryLimitError
from lading.memory.allocator import return_freed_memory
from lading.memory.engine import Engine, Rates, Statistics, parameter_places
from lading.memory.image import Weight
from lading.memory.planner import Placement
from lading.memory.trace import Call, Trace, is_tracing, trace
from lading.memory.units import UNIT_BYTES, Leaf, Unit
from lading.sizes import format_size, parse_size

ENTRIES = ("forward", "encode", "decode")
"""Methods that are calls of a module; others are served leaf by leaf."""

_log = logging.getLogger(__name__)

Signature = tuple[Any, ...]

_ATTRIBUTE = "lading_manager"
_FEWEST_UNITS = 24
"""Small modules are cut into at least about so many units, so that a part of them can stay."""


class _Position(threading.local):
    """Modules that this thread has entered and not left."""

    def __init__(self) -> None:
        self.entered: list[torch.nn.Module] = []


class Stage:
    """Modules that take turns under one limit: only the one that computes has its weights in memory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._lock = threading.Lock()
        self._managers: weakref.WeakSet[Manager] = weakref.WeakSet()

    def join(self, manager: Manager) -> None:
        """Add a module; components that load side by side join from several threads."""
        with self._lock:
            self._managers.add(manager)

    def enter(self, manager: Manager) -> None:
        """Send all others off."""
        for other in self._members():
            if other is not manager:
                other.suspend()

    def buffers(self) -> int:
        """Bytes of all modules' buffers, which stay."""
        buffers = (buffer for manager in self._members() for buffer in manager.module.buffers())
        return sum(buffer.nbytes for buffer in buffers if not buffer.is_meta)

    def _members(self) -> list[Manager]:
        with self._lock:
            return list(self._managers)


@dataclass(frozen=True)
class ModulePlan:
    """Where a module's weights live while it computes.

    Attributes:
        limit: bytes for everything.
        activation_bytes: the most that tensors of a call take, workspaces included.
        other_bytes: buffers, adapters, fixed parameters and staging.
    """

    name: str
    limit: int
    activation_bytes: int
    other_bytes: int
    placement: Placement
    units: tuple[Unit, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that is taken at a time."""
        return self.activation_bytes + self.other_bytes + self.placement.nbytes

    def __str__(self) -> str:
        placement = self.placement
        slots = len(placement.slots) * placement.slot_bytes
        rows = (
            ("limit", self.limit, ""),
            ("resident", placement.nbytes - slots, f"{len(placement.resident)} of {len(self.units)} units"),
            ("slots", slots, f"{len(placement.slots)} of {format_size(placement.slot_bytes)}"),
            ("activations", self.activation_bytes, ""),
            ("other", self.other_bytes, "buffers, adapters, fixed parameters, staging"),
            ("peak", self.peak_bytes, ""),
            ("streamed", placement.streamed_bytes, f"a call, predicted {placement.seconds:.2f} s"),
        )
        lines = [f"{what:<12}  {format_size(nbytes):>8}  {note}".rstrip() for what, nbytes, note in rows]
        return "\n".join([self.name, *lines])


class Manager:
    """Keeps one module's weights, and what it computes with, within a limit; see `lading.manage`.

    Attributes:
        module: what it manages; call it as ever.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        weights: Mapping[str, Weight],
        inventories: tuple[FileInventory, ...],
        memory_limit: int | str,
        examples: Mapping[str, tuple[tuple[Any, ...], Mapping[str, Any]]] | None = None,
        unit_bytes: int | None = None,
        rates: Rates | None = None,
        stage: Stage | None = None,
    ) -> None:
        return_freed_memory()
        self.module = module
        self._weights = dict(weights)
        self._inventories = inventories
        self._limit = parse_size(memory_limit)
        self._stage = stage or Stage()
        self._stage.join(self)
        total = sum(weight.nbytes for weight in self._weights.values())
        self._unit_bytes = unit_bytes or max(min(UNIT_BYTES, total // _FEWEST_UNITS), 1)
        self._rates = rates or Rates()
        self._traces: dict[str, Trace] = {}
        self._known: dict[str, list[Signature]] = {}
        self._engine: Engine | None = None
        self._plan: ModulePlan | None = None
        self._originals: dict[str, Callable[..., Any]] = {}
        self._hooks: list[RemovableHandle] = []
        self._position = _Position()
        self._places = parameter_places(module)
        self._modules = dict(module.named_modules())
        self._names = {id(part): name for name, part in self._modules.items()}
        self._added_bytes = 0
        for entry, (args, kwargs) in (examples or {}).items():
            self._learn(entry, args, kwargs)
        try:
            self._replan()
        except BaseException:
            self.release()
            raise
        self._wrap()
        module.__dict__[_ATTRIBUTE] = self
        self._hooks = list(self._install())

    def __deepcopy__(self, memo: dict[int, Any]) -> Manager:
        """Copies of the module for a trace share its manager."""
        return self

    @property
    def plan(self) -> ModulePlan:
        """Where the weights live now; `print` it."""
        assert self._plan is not None
        return self._plan

    @property
    def active(self) -> bool:
        """Whether the module's weights take memory now."""
        return self._engine is not None and self._engine.active

    def stats(self) -> Statistics:
        """What streaming did so far."""
        assert self._engine is not None
        return self._engine.statistics

    def set_limit(self, memory_limit: int | str) -> None:
        """Keep another limit from the next call on.

        Raises:
            MemoryLimitError: it is too small; the limit before stays.
        """
        before, self._limit = self._limit, parse_size(memory_limit)
        try:
            self._replan()
        except MemoryLimitError:
            self._limit = before
            raise

    def load(self) -> None:
        """Start to read what stays, so that the first call finds it."""
        assert self._engine is not None
        self._engine.resume()

    def suspend(self) -> None:
        """Give the weights' memory back until the next call."""
        if self._engine is not None:
            self._engine.suspend()

    def release(self) -> None:
        """End the management: threads, files and memory go, and the module's parameters have no values any more."""
        for hook in self._hooks:
            hook.remove()
        if self._engine is not None:
            self._engine.release()
            self._engine = None
        for attribute in (*self._originals, "_apply", _ATTRIBUTE):
            self.module.__dict__.pop(attribute, None)
        self._originals = {}

    def _wrap(self) -> None:
        for entry in ENTRIES:
            original = getattr(self.module, entry, None)
            if callable(original):
                self._originals[entry] = original
                self.module.__dict__[entry] = self._wrapped(entry, original)
        self.module.__dict__["_apply"] = self._apply

    def _apply(self, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
        """What `to`, `half` and their like come to: nothing where nothing changes, else an error.

        Raises:
            LadingError: the module would move or change its dtype, which the limit does not allow for.
        """
        for dtype in {weight.dtype for weight in self._weights.values()}:
            probe = torch.empty(0, dtype=dtype)
            changed = change(probe)
            if changed.dtype != dtype or changed.device != probe.device:
                raise LadingError(
                    f"{type(self.module).__name__} is kept under a memory limit in {dtype} on the CPU: load it with "
                    f"the dtype and device that it is to have, or end the limit with manager_of(...).release()"
                )
        return self.module

    def _install(self) -> Iterator[RemovableHandle]:
        """Hook every module that has parameters of its own."""
        held: dict[torch.nn.Module, dict[str, str]] = {}
        for name, places in self._places.items():
            for part, attribute in places:
                held.setdefault(part, {})[attribute] = name
        for name, part in self._modules.items():
            if part in held:
                yield part.register_forward_pre_hook(lambda part, _, name=name: self._enter(part, name), prepend=True)
                yield part.register_forward_hook(lambda part, *_: self._leave(part), always_call=True)
                yield part.register_full_backward_pre_hook(lambda _, __, name=name: self._need(name))
                yield part.register_state_dict_post_hook(partial(self._fill_state_dict, names=held[part]))

    def _enter(self, part: torch.nn.Module, name: str) -> None:
        """Have a module's weights in their place, and keep other threads out until it has computed."""
        if is_tracing():
            return
        self._stage.lock.acquire()
        try:
            self._need(name)
        except BaseException:
            self._stage.lock.release()
            raise
        self._position.entered.append(part)

    def _leave(self, part: torch.nn.Module) -> None:
        """End what `_enter` began, also after an exception; not what failed to begin."""
        if self._position.entered and self._position.entered[-1] is part:
            self._position.entered.pop()
            self._stage.lock.release()

    def _need(self, name: str) -> None:
        with self._stage.lock:
            assert self._engine is not None
            self._engine.need(name)

    def _fill_state_dict(
        self, part: torch.nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any, names: Mapping[str, str]
    ) -> None:
        """Put true weights into a state dict: a slot may hold another unit's, and a suspended module has none."""
        assert self._engine is not None
        for attribute, name in names.items():
            if prefix + attribute in state_dict:
                state_dict[prefix + attribute] = self._engine.read(name)

    def _wrapped(self, entry: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_tracing():
                return original(*args, **kwargs)
            with self._stage.lock:
                self._notice_adapters()
                self._learn(entry, args, kwargs)
                assert self._engine is not None
                with self._engine.entry(entry):
                    return original(*args, **kwargs)

        return call

    def _learn(self, entry: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Trace an entry with inputs that are larger, or other, than any before, and plan anew."""
        signature = _signature(args, kwargs)
        if any(_covers(known, signature) for known in self._known.get(entry, ())):
            return
        try:
            found = self._translated(trace(self.module, args, kwargs, entry))
        except LadingError as error:
            _log.warning("%s: the plan does not count activations", error)
            self._known.setdefault(entry, []).append(signature)
            return
        before = self._traces.get(entry)
        if before is not None:
            activation = max(before.activation_bytes, found.activation_bytes)
            found = Trace(found.calls, activation, before.fixed | found.fixed)
        self._traces[entry] = found
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

    def _translated(self, found: Trace) -> Trace:
        """Give leaves and parameters the names that they had before adapters wrapped them, and drop the adapters'."""
        now = dict(self.module.named_modules())
        calls = [
            Call(self._names[id(now[call.leaf])], call.flops)
            for call in found.calls
            if id(now[call.leaf]) in self._names
        ]
        fixed = set()
        for name in found.fixed:
            path, _, attribute = name.rpartition(".")
            fixed |= {
                old
                for old, places in self._places.items()
                if any(part is now[path] and other == attribute for part, other in places)
            }
        return Trace(tuple(calls), found.activation_bytes, frozenset(fixed))

    def _notice_adapters(self) -> None:
        """Plan anew when parameters came that no checkpoint holds, or went: they take memory, and change the calls."""
        own = {id(part._parameters[attribute]) for places in self._places.values() for part, attribute in places}
        added = sum(parameter.nbytes for parameter in self.module.parameters() if id(parameter) not in own)
        if added != self._added_bytes:
            self._added_bytes = added
            self._known.clear()
            self._traces.clear()
            self._replan()

    def _replan(self) -> None:
        leaves, fixed = self._leaves()
        engine = self._engine
        if engine is None or tuple(leaf for unit in engine.units for leaf in unit.leaves) != leaves:
            if engine is not None:
                engine.release()
            readers = {inventory.file: FileReader(inventory, "stream") for inventory in self._inventories}
            engine = self._engine = Engine(
                self.module,
                self._places,
                self._weights,
                readers,
                leaves,
                fixed,
                self._unit_bytes,
                self._stage.lock,
            )
            engine.on_activate = lambda: self._stage.enter(self)
        activation = max((trace.activation_bytes for trace in self._traces.values()), default=0)
        others = self._stage.buffers() + self._added_bytes
        try:
            placement = engine.set_placement(self._limit - activation - others, self._traces, self._rates)
        except MemoryLimitError:
            minimum = engine.minimum_bytes() + activation + others
            raise MemoryLimitError(
                f"{type(self.module).__name__} cannot run in {format_size(self._limit)}: it needs "
                f"{format_size(activation)} for activations and {format_size(minimum - activation)} for weights that "
                f"pass through: give it at least {minimum} bytes, or smaller inputs",
                minimum,
            ) from None
        others += engine.overhead_bytes
        self._plan = ModulePlan(type(self.module).__name__, self._limit, activation, others, placement, engine.units)

    def _leaves(self) -> tuple[tuple[Leaf, ...], frozenset[str]]:
        """The leaves in the order of the traces, then those that no trace has seen; and what has to stay."""
        own: dict[int, list[str]] = {}
        for name, places in self._places.items():
            for owner, _ in places:
                own.setdefault(id(owner), []).append(name)
        fixed = {name for found in self._traces.values() for name in found.fixed}
        for part in self._modules.values():
            if id(part) in own and any(id(inner) in own for inner in part.modules() if inner is not part):
                fixed.update(own[id(part)])
        calls = [call for found in self._traces.values() for call in found.calls]
        flops = Counter[str]()
        for call in calls:
            flops[call.leaf] += call.flops
        ordered = [*(call.leaf for call in calls), *(name for name, part in self._modules.items() if id(part) in own)]
        leaves = []
        for name in dict.fromkeys(ordered):
            parameters = tuple(dict.fromkeys(p for p in own[id(self._modules[name])] if p not in fixed))
            if parameters:
                nbytes = sum(self._weights[parameter].nbytes for parameter in parameters)
                leaves.append(Leaf(name, parameters, nbytes, flops[name]))
        return tuple(leaves), frozenset(fixed)


def manager_of(module: torch.nn.Module) -> Manager:
    """Return what keeps a module within its limit.

    Raises:
        LadingError: the module was not loaded under a limit.
    """
    manager = module.__dict__.get(_ATTRIBUTE)
    if not isinstance(manager, Manager):
        raise LadingError(f"{type(module).__name__} is under no memory limit: load it with memory_limit=...")
    return manager


def _signature(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Signature:
    """What a call's memory depends on: the shapes and dtypes of its tensors, and everything else as it is."""
    values, structure = tree_flatten((args, dict(kwargs)))
    return str(structure), *(
        (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else repr(type(value)) for value in values
    )


def _covers(known: Signature, new: Signature) -> bool:
    """Whether a traced call took at least the memory that a new one takes: no tensor of the new one is larger."""
    if len(known) != len(new):
        return False
    for one, other in zip(known, new, strict=True):
        if isinstance(one, tuple) and isinstance(other, tuple):
            if one[0] != other[0] or len(one[1]) != len(other[1]):
                return False
            if any(size > bound for size, bound in zip(other[1], one[1], strict=True)):
                return False
        elif one != other:
            return False
    return True
