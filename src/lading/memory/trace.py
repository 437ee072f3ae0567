"""What a module does with its weights: which leaf runs when, how much it computes, and what its activations take.

One forward with fake tensors (shapes, dtypes and devices, no data), and one backward where gradients are wanted, tell
it, in a second and without memory. A *leaf* is a module that owns parameters and calls no other module that does;
parameters that are used in any other way than by their leaf are *fixed*: they have to be there all the time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from lading.errors import LadingError
from lading.memory.operations import Operation, is_free, kernel_bytes, operation_of, workspace_bytes

_QUESTIONS = {
    getattr(torch.Tensor, name).__get__
    for name in ("dtype", "device", "shape", "ndim", "layout", "is_cuda", "is_cpu", "is_meta", "requires_grad")
} | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride, torch.Tensor.is_floating_point}
"""What is asked of a tensor without its values: to ask a parameter outside its leaf does not hold it in memory."""
_ASKED_EACH_TIME = 256
"""Storages that are asked whether they still live, about, for each operator."""

_MOST_SIZES = 256
"""Numbers in a tensor of sizes; what is larger is data."""

_state = threading.local()


def is_tracing() -> bool:
    """Whether this thread runs a module to trace it: there is no data, and none is needed."""
    return getattr(_state, "tracing", False)


@dataclass(frozen=True)
class Call:
    """One run of a leaf, and what containers compute themselves until the next.

    Attributes:
        leaf: its name in the module.
        flops: floating-point operations, two for a multiplication with an addition.
        operations: one by one.
    """

    leaf: str
    flops: int
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What one call of a module does.

    Attributes:
        calls: the leaves in the order in which they run; a leaf may run twice.
        activation_bytes: the most that inputs, intermediate tensors and workspaces take at a time, and the code
            of kernels that are made for them; with a backward pass also what is saved for it, and the gradients.
        fixed: names of parameters that are used outside their leaf, or by modules that call others.
        backward: the leaves in the order in which the backward pass needs them, those that it computes again included.
    """

    calls: tuple[Call, ...]
    activation_bytes: int
    fixed: frozenset[str]
    backward: tuple[Call, ...] = ()

    @property
    def all_calls(self) -> tuple[Call, ...]:
        """There and back."""
        return self.calls + self.backward


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    entry: str = "forward",
    device: torch.device | str = "cpu",
    backward: bool = False,
    recorder: TorchDispatchMode | None = None,
) -> Trace:
    """Run a module on fake tensors and note what it does; neither its weights nor its inputs need data.

    Args:
        args: tensors of any device, the meta device included; only shapes, dtypes, places and `requires_grad` count,
            and where the module decides by them the values of small integral ones, such as sizes.
        entry: the method to call.
        device: where the module computes; it need not be there.
        backward: go back from the outputs too.
        recorder: is shown every operator too.

    Raises:
        LadingError: the module cannot be copied, or decides by values that only real data has.
    """
    given = args, dict(kwargs or {})
    holds_sizes = any(isinstance(value, torch.Tensor) and _may_be_sizes(value) for value in tree_iter(given))
    try:
        try:
            return _traced(_twin(module), given, entry, torch.device(device), backward, recorder, with_sizes=False)
        except DataDependentOutputException:
            if not holds_sizes:
                raise
            return _traced(_twin(module), given, entry, torch.device(device), backward, recorder, with_sizes=True)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, KeyError, AttributeError, IndexError) as error:
        raise LadingError(f"{type(module).__name__} cannot be traced with these inputs: {error}") from error


def _traced(
    module: torch.nn.Module,
    given: Any,
    entry: str,
    device: torch.device,
    backward: bool,
    recorder: TorchDispatchMode | None,
    with_sizes: bool,
) -> Trace:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    place = torch.device("cpu") if device.type == "cuda" and not torch.cuda.is_available() else device

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        needs_gradient = backward and tensor.requires_grad
        with mode:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=place, requires_grad=needs_gradient
            )

    def made(tensor: torch.Tensor) -> torch.Tensor:
        if not with_sizes or not _may_be_sizes(tensor):
            return fake(tensor)
        values = tensor.tolist()
        with mode:
            return torch.tensor(values, dtype=tensor.dtype).reshape(tensor.shape)

    state: dict[str, torch.Tensor] = {}
    twins: dict[int, torch.Tensor] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in twins:
            twins[id(tensor)] = _of_its_kind(fake(tensor), tensor)
        state[name] = twins[id(tensor)]
    observer = _Observer(module, state, device.type)
    _state.tracing = True
    try:
        with torch.set_grad_enabled(backward), _small_values_known(with_sizes):
            inputs = tree_map_only(torch.Tensor, made, given)
            with mode, observer.watching(), observer, recorder or nullcontext():
                observer.admit(tree_iter(inputs))
                run = _Run(module, entry, observer.turn if backward else None)
                torch.func.functional_call(
                    run, {f"module.{name}": tensor for name, tensor in state.items()}, *inputs, tie_weights=False
                )
    finally:
        _state.tracing = False
    calls, back = observer.calls(), observer.calls(backward=True)
    workspace = kernel_bytes((one for call in (*calls, *back) for one in call.operations), device.type)
    return Trace(calls, observer.peak + workspace, frozenset(observer.fixed), back)


def _of_its_kind(fake: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Let a fake tensor know what a quantised parameter knows of its bytes; a fake can be of no other class."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        vars(fake).update(vars(tensor))
        if hasattr(tensor, "as_tensor"):  # how diffusers' quantised parameters give their bytes
            fake.as_tensor = lambda: fake  # type: ignore[attr-defined] # torch's tensors have none
    return fake


def _may_be_sizes(tensor: torch.Tensor) -> bool:
    """Whether an input may hold the sizes of something; a mask does not, as its worst case is what counts."""
    integral = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return integral and tensor.device.type == "cpu" and tensor.numel() <= _MOST_SIZES


@contextmanager
def _small_values_known(known: bool) -> Iterator[None]:
    """Let torch compute with what small tensors hold, where it knows it, as it does with single numbers."""
    before = fake_tensor.CONSTANT_NUMEL_LIMIT
    fake_tensor.CONSTANT_NUMEL_LIMIT = max(before, _MOST_SIZES) if known else before
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = before


def _twin(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module of the same structure without weights: what it remembers of a traced call, nobody must use.

    Rotary embeddings, for one, are cached by many networks, and a cached tensor without data would spoil real calls.
    """
    memo: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    kept = (value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor))
    memo |= {id(tensor): tensor.detach() for tensor in kept}
    try:
        twin = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        raise LadingError(f"{type(module).__name__} cannot be traced, as it cannot be copied: {error}") from error
    for attribute in [name for name, value in vars(twin).items() if callable(value) and hasattr(type(twin), name)]:
        del twin.__dict__[attribute]  # a wrapped method would lead back to the module
    return twin


class _Run(torch.nn.Module):
    """One call of a module's method, and the way back, as a module's forward: what is computed again runs inside.

    Args:
        turn: called where the backward pass begins; None for none.
    """

    def __init__(self, module: torch.nn.Module, entry: str, turn: Callable[[], None] | None) -> None:
        super().__init__()
        self.module = module
        self._method = getattr(type(module), entry) if entry != "forward" else type(module).__call__
        self._turn = turn

    def forward(self, *args: Any, **kwargs: Any) -> None:
        output = self._method(self.module, *args, **kwargs)
        if self._turn is not None:
            self._turn()
            roots = [value for value in tree_iter(output) if isinstance(value, torch.Tensor) and value.requires_grad]
            torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types it not
    """Counts live bytes and FLOPs under the dispatcher; hooks and a function mode tell it whose they are."""

    def __init__(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch types it not
        self.peak = 0
        self._device = device
        self.fixed: set[str] = set()
        self._module = module
        self._owners = {
            f"{prefix}{'.' if prefix else ''}{name}": part
            for prefix, part in module.named_modules(remove_duplicate=False)
            for name, _ in part.named_parameters(recurse=False, remove_duplicate=False)
        }
        self._names: dict[int, list[str]] = {}
        for name in self._owners:
            self._names.setdefault(id(state[name]), []).append(name)
        self._weights = {_reference(tensor).cdata for tensor in state.values()}
        self._live = _Live()
        self._stack: list[_Visit] = []
        self._containers: set[torch.nn.Module] = set()
        self._visits: list[_Visit] = []
        self._turned: int | None = None

    def calls(self, backward: bool = False) -> tuple[Call, ...]:
        """The leaves' runs; what a container computes itself counts with the leaf that ran before it."""
        found = self._visits[self._turned or len(self._visits) :] if backward else self._visits[: self._turned]
        return tuple(
            Call(visit.name, sum(operation.flops for operation in visit.operations), tuple(visit.operations))
            for visit in found
            if visit.part not in self._containers
        )

    def turn(self) -> None:
        """From here on it goes back."""
        self._turned = len(self._visits)

    def admit(self, tensors: Any) -> None:
        """Count tensors that are there before anything runs."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module runs, and which parameters functions are given."""
        handles = []
        names = {id(part): name for name, part in reversed(list(self._module.named_modules()))}
        for part in self._module.modules():
            if any(True for _ in part.parameters(recurse=False)):
                name = names[id(part)]
                handles.append(
                    part.register_forward_pre_hook(lambda _, __, part=part, name=name: self._enter(part, name))
                )
                handles.append(
                    part.register_forward_hook(
                        lambda part, _, output, name=name: self._leave(part, name, output), always_call=True
                    )
                )
        try:
            with _ParameterUse(self._use):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = _all_nonzero(*args) if func is torch.ops.aten.nonzero.default else func(*args, **(kwargs or {}))
        workspace = 0
        if not is_free(func):
            operation = operation_of(func, args, kwargs or {}, output)
            operands = (value for value in (*args, output) if isinstance(value, torch.Tensor))
            workspace = workspace_bytes(operation, operands, self._device)
            if self._visits:
                self._visits[-1].operations.append(operation)
        known = [self._count(tensor) for tensor in tree_iter(output) if isinstance(tensor, torch.Tensor)]
        if workspace or not all(known):
            self._measure(workspace)
        return output

    def _enter(self, part: torch.nn.Module, name: str) -> None:
        if self._stack and self._stack[-1].part not in self._containers:
            self._containers.add(self._stack[-1].part)
            self._fix_own(self._stack[-1].part)
        self._stack.append(_Visit(part, name))
        self._visits.append(self._stack[-1])

    def _leave(self, part: torch.nn.Module, name: str, output: Any) -> None:
        self._stack.pop()
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._visits.append(_Visit(part, name)))  # type: ignore[no-untyped-call] # torch types it not

    def _use(self, tensor: torch.Tensor) -> None:
        names = self._names.get(id(tensor), ())
        running = {id(visit.part) for visit in self._stack}
        if names and not any(id(self._owners[name]) in running for name in names):
            self.fixed.update(names)

    def _fix_own(self, part: torch.nn.Module) -> None:
        self.fixed.update(name for name, owner in self._owners.items() if owner is part)

    def _count(self, tensor: torch.Tensor) -> bool:
        """Count a tensor; tell whether its memory was known."""
        reference = _reference(tensor)
        if reference.cdata in self._weights:
            return True
        return self._live.add(reference, tensor.untyped_storage().nbytes())

    def _measure(self, workspace: int) -> None:
        self.peak = max(self.peak, self._live.nbytes() + workspace)


class _Live:
    """Bytes of storages that live, and never less.

    Of the thousands that wait for a way back not all are asked each time whether they still live, but those that are
    new. One of them that has gone meanwhile counts a while longer.
    """

    def __init__(self) -> None:
        self._old: dict[int, tuple[Any, int]] = {}
        self._new: dict[int, tuple[Any, int]] = {}
        self._old_bytes = 0
        self._waited = 0

    def add(self, reference: Any, nbytes: int) -> bool:
        """Count a storage, once; tell whether it was counted already."""
        known = reference.cdata in self._old or reference.cdata in self._new
        if not known:
            self._new[reference.cdata] = (reference, nbytes)
        return known

    def nbytes(self) -> int:
        """Return the bytes of all."""
        self._waited += 1
        if self._waited * _ASKED_EACH_TIME > len(self._old):
            self._old = _living(self._old | self._new)
            self._old_bytes = sum(nbytes for _, nbytes in self._old.values())
            self._new = {}
            self._waited = 0
        else:
            self._new = _living(self._new)
        return self._old_bytes + sum(nbytes for _, nbytes in self._new.values())


def _living(storages: dict[int, tuple[Any, int]]) -> dict[int, tuple[Any, int]]:
    return {key: one for key, one in storages.items() if not one[0].expired()}


@dataclass
class _Visit:
    part: torch.nn.Module
    name: str
    operations: list[Operation] = field(default_factory=list)


class _ParameterUse(TorchFunctionMode):
    """Tells of every tensor that a function of torch is given."""

    def __init__(self, use: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._use = use

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _QUESTIONS:
            return func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs or {})):
            if isinstance(value, FakeTensor):
                self._use(value)
        return func(*args, **(kwargs or {}))


def _all_nonzero(tensor: torch.Tensor) -> torch.Tensor:
    """The places of the most that can be nonzero: data tells how many are, and any number of them has to fit."""
    return tensor.new_empty((tensor.numel(), tensor.ndim), dtype=torch.int64)


def _reference(tensor: torch.Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call] # torch types it not
