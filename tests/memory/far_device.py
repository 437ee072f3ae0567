"""A second device that is not there, for tests on any machine: its tensors are not the CPU's, and do not mix with them.

It answers to `mps:0`, which torch knows and this kind of machine has not. Its memory is host memory; what torch asks of
it inside `with far_device():` is computed by the CPU, and a computation with tensors of both devices is an error.
There is no autograd on it: that asks a device for its streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("mps:0")
_BETWEEN_DEVICES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class FarTensor(torch.Tensor):
    """A tensor of the far device; `near` is what it holds."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as torch advises

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> FarTensor:
        wrapped: FarTensor = torch.Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), dtype=near.dtype, device=FAR
        )
        wrapped.near = near
        return wrapped

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch types it as an instance's
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def far_device() -> Iterator[None]:
    """Within this context the far device is there."""
    with torch.no_grad(), _FarMode():  # type: ignore[no-untyped-call] # torch types it not
        yield


class _FarMode(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types it not
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    if func not in _BETWEEN_DEVICES and far and any(t.dim() for t in tensors if not isinstance(t, FarTensor)):
        raise RuntimeError(f"{func}: tensors of two devices")
    device = kwargs.get("device")
    goes_far = bool(far) if device is None else torch.device(device).type == FAR.type
    if func is torch.ops.aten.copy_.default:
        goes_far = isinstance(args[0], FarTensor)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda value: value.near if isinstance(value, FarTensor) else value, (args, kwargs))
    result = func(*args, **kwargs)
    return (
        tree_map(lambda value: FarTensor(value) if isinstance(value, torch.Tensor) else value, result)
        if goes_far
        else result
    )
