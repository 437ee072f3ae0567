"""Dtypes of stored tensors, and tensors to other dtypes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

import torch

from lading.checkpoint.header import TensorInfo
from lading.errors import CheckpointError, LadingError
from lading.sizes import dtype_name

DtypeOf: TypeAlias = Callable[[str], "torch.dtype | None"]
"""The dtype that a floating-point tensor of a name is cast to; None leaves it as the file has it."""


def as_stored(_name: str) -> None:
    """The `DtypeOf` that casts nothing."""


def torch_dtype_of(info: TensorInfo) -> torch.dtype:
    """Return torch's dtype of a stored tensor.

    Raises:
        CheckpointError: the installed torch has no such dtype.
    """
    dtype = getattr(torch, info.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(
            f"{info.file}: holds {info.dtype}, which torch {torch.__version__} has no dtype for: "
            "use a torch that has it, or another file of this model"
        )
    return dtype


def packed_shape(info: TensorInfo) -> tuple[int, ...]:
    """Return the shape that torch gives a stored tensor: two float4 share an element along the last axis."""
    if info.dtype != "float4_e2m1fn_x2":
        return info.shape
    if not info.shape or info.shape[-1] % 2:
        raise CheckpointError(f"{info.file}: float4 of shape {info.shape} does not pack in pairs: the file is damaged")
    return (*info.shape[:-1], info.shape[-1] // 2)


def stored_block(info: TensorInfo) -> tuple[int, int]:
    """Return how many elements can only be read together, and the bytes that they take in the file."""
    encoding = info.encoding
    return (1, torch_dtype_of(info).itemsize) if encoding is None else (encoding.block, encoding.block_bytes)


def element_count(info: TensorInfo) -> int:
    """Return how many elements are made of the bytes of a tensor; of one with strides, all that its bytes span."""
    if info.encoding is not None:
        return prod(info.shape)
    return (info.end - info.start) // torch_dtype_of(info).itemsize


def is_stored_as(info: TensorInfo, dtype: torch.dtype) -> bool:
    """Whether a tensor's bytes in the file are those of a tensor of a dtype."""
    return info.encoding is None and torch_dtype_of(info) == dtype


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype given as such or by name.

    Raises:
        LadingError: no dtype has that name, or this torch lacks it.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if not isinstance(dtype, str):
        raise LadingError(f"{dtype!r} is no dtype: give a torch dtype or its name")
    found = getattr(torch, dtype_name(dtype), None)
    if not isinstance(found, torch.dtype):
        raise LadingError(f"torch {torch.__version__} has no dtype {dtype!r}: use another")
    return found


def cast_of(info: TensorInfo, wanted: torch.dtype | None) -> torch.dtype | None:
    """Return the dtype that a stored tensor is to be cast to, or None if it stays as it is.

    Raises:
        CheckpointError: the installed torch lacks the stored dtype.
    """
    stored = torch_dtype_of(info)
    return wanted if wanted != stored and stored.is_floating_point else None


def cast_tensor(tensor: torch.Tensor, dtype: torch.dtype | None, device: str | torch.device) -> torch.Tensor:
    """Return a tensor on a device, a floating-point one in a dtype; nothing is copied when nothing changes."""
    return tensor.to(device=device, dtype=dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
