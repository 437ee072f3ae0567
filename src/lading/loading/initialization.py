"""Building a network without filling it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import init
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

_FILLS = {"uniform_", "normal_", "fill_", "zero_"} | {
    name for name in dir(init) if name.endswith("_") and not name.startswith("_")
}
"""Names of what fills parameters, torch's and transformers' own. On the meta device torch works out in Python what it
would have to do, which is most of the time in which a text encoder is built."""


@contextmanager
def skip_model_initialization(device: str | torch.device = "meta") -> Iterator[None]:
    """Put every parameter that is created inside on a device, by default the meta device, which has no memory.

    Initialising a parameter there does nothing, so a network of any size is built in the time its Python takes.
    Buffers are not touched: what a constructor computes is real and right. Tied parameters stay tied. Contexts nest,
    the inner device wins; they act on the thread that entered them and on no other.

    Source of the mechanism: torch's global parameter registration hooks, torch/nn/modules/module.py.

    >>> import torch, lading
    >>> with lading.skip_model_initialization():
    ...     network = torch.nn.Linear(20_000, 20_000)
    >>> network.weight.is_meta
    True
    """
    contexts = _contexts()
    contexts.append(_Context(torch.device(device)))
    try:
        with _NothingToFill():
            yield
    finally:
        contexts.pop()


class _Context:
    """One `with`: where parameters go, and which went there already, so that tied ones stay one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moved: dict[int, tuple[weakref.ref[torch.nn.Parameter], torch.nn.Parameter]] = {}

    def place(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        """Return the parameter on this context's device, the same one each time."""
        if parameter.is_meta or parameter.device == self._device or isinstance(parameter, UninitializedParameter):
            return parameter
        known = self._moved.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        placed: torch.nn.Parameter = torch.Tensor._make_subclass(
            type(parameter), parameter.detach().to(self._device), parameter.requires_grad
        )
        placed.__dict__.update(parameter.__dict__)
        self._moved[id(parameter)] = (weakref.ref(parameter), placed)
        return placed


class _NothingToFill(TorchFunctionMode):
    """Leaves tensors without memory as they are."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__name__", None) in _FILLS:
            filled = args[0] if args else (kwargs or {}).get("tensor")  # torch.nn.init names it
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return function(*args, **(kwargs or {}))


_ACTIVE = threading.local()


def _contexts() -> list[_Context]:
    """The contexts that this thread is in, the innermost last: that one places parameters."""
    contexts: list[_Context] = _ACTIVE.__dict__.setdefault("contexts", [])
    return contexts


def _place(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
    contexts = _contexts()
    return contexts[-1].place(parameter) if contexts and parameter is not None else None


# Registered once and for all: torch's table of hooks may not change while another thread builds a network.
register_module_parameter_registration_hook(_place)  # type: ignore[arg-type] # the annotation omits the result
