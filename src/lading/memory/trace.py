"""What a module does with its weights: which leaf runs when, how much it computes, and what its activations take.

One forward with fake tensors (shapes, dtypes and devices, no data) tells it, in a second and without memory. A *leaf*
is a module that owns parameters and calls no other module that does; parameters that are used in any other way than by
their leaf are *fixed*: they have to be there all the time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry

from lading.errors import LadingError

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
_MOST_VALUES = 4096
"""Of a tensor that keeps its values in a trace, as a mask of a prompt does; what is larger is data."""

_state = threading.local()


def is_tracing() -> bool:
    """Whether this thread runs a module to trace it: there is no data, and none is needed."""
    return getattr(_state, "tracing", False)


@dataclass(frozen=True)
class Call:
    """One run of a leaf.

    Attributes:
        leaf: its name in the module.
        flops: floating-point operations, two for a multiplication with an addition.
    """

    leaf: str
    flops: int


@dataclass(frozen=True)
class Trace:
    """What one call of a module does.

    Attributes:
        calls: the leaves in the order in which they run; a leaf may run twice.
        activation_bytes: the most that inputs, intermediate tensors and workspaces take at a time.
        fixed: names of parameters that are used outside their leaf, or by modules that call others.
    """

    calls: tuple[Call, ...]
    activation_bytes: int
    fixed: frozenset[str]


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    entry: str = "forward",
    device: torch.device | str = "cpu",
) -> Trace:
    """Run a module on fake tensors and note what it does; neither its weights nor its inputs need data.

    Args:
        args: tensors of any device, the meta device included; only shapes, dtypes and places count, and what small
            integral tensors on the CPU hold: masks, sizes.
        entry: the method to call.
        device: where the module computes.

    Raises:
        LadingError: the module cannot be copied, or decides by values that only real data has.
    """
    module = _twin(module)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device(device)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    state: dict[str, torch.Tensor] = {}
    twins: dict[int, torch.Tensor] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in twins:
            twins[id(tensor)] = fake(tensor)
        state[name] = twins[id(tensor)]

    def given(tensor: torch.Tensor) -> torch.Tensor:
        if not _counts(tensor, device):
            return fake(tensor)
        values = tensor.tolist()
        with mode:
            return torch.tensor(values, dtype=tensor.dtype).reshape(tensor.shape)

    observer = _Observer(module, state)
    _state.tracing = True
    try:
        with torch.no_grad(), _small_values_known():
            inputs = tree_map_only(torch.Tensor, given, (args, dict(kwargs or {})))
            with mode, observer.watching(), observer:
                observer.admit(tree_iter(inputs))
                _call(module, state, entry, *inputs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, KeyError, AttributeError, IndexError) as error:
        raise LadingError(f"{type(module).__name__} cannot be traced with these inputs: {error}") from error
    finally:
        _state.tracing = False
    return Trace(tuple(observer.calls()), observer.peak, frozenset(observer.fixed))


def _counts(tensor: torch.Tensor, device: torch.device) -> bool:
    """Whether a module may look at what an input holds: a mask, or the sizes of pictures."""
    integral = not tensor.is_floating_point() and not tensor.is_complex()
    return integral and tensor.device.type == device.type == "cpu" and tensor.numel() <= _MOST_VALUES


@contextmanager
def _small_values_known() -> Iterator[None]:
    """Let torch compute with what small tensors hold, where it knows it, as it does with single numbers."""
    before = fake_tensor.CONSTANT_NUMEL_LIMIT
    fake_tensor.CONSTANT_NUMEL_LIMIT = max(before, _MOST_VALUES)
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = before


def _twin(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module of the same structure without weights: what it remembers of a traced call, nobody must use.

    Rotary embeddings, for one, are cached by many networks, and a cached tensor without data would spoil real calls.
    """
    memo: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
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


def _call(module: torch.nn.Module, state: dict[str, torch.Tensor], entry: str, args: Any, kwargs: Any) -> None:
    if entry == "forward":
        torch.func.functional_call(module, state, args, kwargs, tie_weights=False)
        return
    method = getattr(type(module), entry)
    torch.func.functional_call(
        _Method(module, method), {f"module.{name}": t for name, t in state.items()}, args, kwargs
    )


class _Method(torch.nn.Module):
    """A method of a module as a module's forward."""

    def __init__(self, module: torch.nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.module, *args, **kwargs)


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types it not
    """Counts live bytes and FLOPs under the dispatcher; hooks and a function mode tell it whose they are."""

    def __init__(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch types it not
        self.peak = 0
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
        self._live: dict[int, tuple[Any, int]] = {}
        self._stack: list[_Run] = []
        self._runs: list[_Run] = []

    def calls(self) -> Iterator[Call]:
        """The leaves' runs; what a container computes itself counts with the leaf that ran before it."""
        for run in self._runs:
            if run.is_leaf:
                yield Call(run.name, run.flops)

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
                handles.append(part.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            with _ParameterUse(self._use):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        workspace = _workspace_bytes(func, args, output)
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        if count is not None and self._runs:
            self._runs[-1].flops += int(count(*args, **(kwargs or {}), out_val=output))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        self._measure(workspace)
        return output

    def _enter(self, part: torch.nn.Module, name: str) -> None:
        if self._stack:
            self._stack[-1].is_leaf = False
            self._fix_own(self._stack[-1].part)
        self._stack.append(_Run(part, name))
        self._runs.append(self._stack[-1])

    def _leave(self) -> None:
        self._stack.pop()

    def _use(self, tensor: torch.Tensor) -> None:
        names = self._names.get(id(tensor), ())
        running = {id(run.part) for run in self._stack}
        if names and not any(id(self._owners[name]) in running for name in names):
            self.fixed.update(names)

    def _fix_own(self, part: torch.nn.Module) -> None:
        self.fixed.update(name for name, owner in self._owners.items() if owner is part)

    def _count(self, tensor: torch.Tensor) -> None:
        reference = _reference(tensor)
        if reference.cdata not in self._live and reference.cdata not in self._weights:
            self._live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())

    def _measure(self, workspace: int) -> None:
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            del self._live[key]
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._live.values()) + workspace)


@dataclass
class _Run:
    part: torch.nn.Module
    name: str
    flops: int = 0
    is_leaf: bool = True


class _ParameterUse(TorchFunctionMode):
    """Tells of every tensor that a function of torch is given."""

    def __init__(self, use: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._use = use

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs or {})):
            if isinstance(value, FakeTensor):
                self._use(value)
        return func(*args, **(kwargs or {}))


def _reference(tensor: torch.Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call] # torch types it not


def _workspace_bytes(func: Any, args: Any, output: Any) -> int:
    """What a kernel takes beside its inputs and outputs: oneDNN and cuDNN may lay all of them out anew."""
    if func in _CONVOLUTIONS or (func in _PRODUCTS and output.device.type == "cpu"):
        operands = [tensor for tensor in (*args, output) if isinstance(tensor, torch.Tensor)]
        return sum(tensor.nbytes for tensor in operands)
    return 0
