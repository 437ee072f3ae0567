"""Building a network without filling it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter


@contextmanager
def skip_model_initialization(device: str | torch.device = "meta") -> Iterator[None]:
    """Put every parameter that is created inside on a device, by default the meta device, which has no memory.

    Initialising a parameter there does nothing, so a network of any size is built in the time its Python takes.
    Buffers are not touched: what a constructor computes is real and right. Tied parameters stay tied. Contexts nest,
    the inner device wins; they act on the thread that entered them and on no other.

    Source of the mechanism: torch's global parameter registration hooks, torch/nn/modules/module.py.

    >>> import torch, lading
    >>> with lading.skip_model_initialization():
    ...     network = torch.nn.Linear(100_000, 100_000)
    >>> network.weight.is_meta
    True
    """
    target = torch.device(device)
    thread = threading.get_ident()
    moved: dict[int, tuple[weakref.ref[torch.nn.Parameter], torch.nn.Parameter]] = {}

    def move(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if (
            parameter is None
            or threading.get_ident() != thread
            or isinstance(parameter, UninitializedParameter)
            or parameter.device == target
        ):
            return None
        known = moved.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        replacement = _moved(parameter, target)
        moved[id(parameter)] = (weakref.ref(parameter), replacement)
        return replacement

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type] # torch's annotation omits the result
    try:
        yield
    finally:
        handle.remove()


def _moved(parameter: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
    """A parameter of the same class and attributes on another device."""
    data = parameter.detach()
    data = torch.empty_like(data, device=device) if device.type == "meta" else data.to(device)
    replacement: torch.nn.Parameter = torch.Tensor._make_subclass(type(parameter), data, parameter.requires_grad)
    replacement.__dict__.update(parameter.__dict__)
    return replacement
