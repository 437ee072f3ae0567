"""What operators of torch do with their arguments, which need no data: what they compute, touch, and take beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)
_ON_THE_LEFT = {
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
    torch.ops.aten._scaled_mm: 0,
}
"""Products of matrices -> which argument is on the left side."""
_LOOKUPS = {torch.ops.aten.embedding, torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather}
"""Operators that read as much as they write, of whatever there is."""
_PRODUCT_BYTES = 4 << 20
"""The most that one thread takes for a product: 3.1 MB was measured, with oneDNN on AMX; most take far less."""
_BLOCK_ROWS, _BLOCK_COLUMNS = 256, 512
"""Queries and keys that a thread of torch's attention looks at together; see its FlashAttentionKernel.cpp."""
_PACKED_WIDTH = 64
"""Keys and values in half precision are packed as if their width were a multiple of this."""
_KERNEL_BYTES = 1 << 20
"""Of one kernel: 0.1 to 0.6 MB were measured for convolutions, 0.8 to 1.4 for products."""
_FREE = {"device", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided", "sym_size"}


@dataclass(frozen=True)
class Operation:
    """What one kernel computes and touches.

    Attributes:
        operator: "product", "convolution", "attention", or torch's name of what has no FLOPs, with its variant.
        dtype: torch's name of the dtype that it computes in.
        flops: floating-point operations, two for a multiplication with an addition.
        nbytes: of its inputs and outputs.
        sizes: what its speed depends on: of a product rows, inner and columns; of a convolution channels in and out,
            places of the kernel and of the output; of attention heads, queries, keys and their width; else the bytes.
    """

    operator: str
    dtype: str
    flops: int
    nbytes: int
    sizes: tuple[int, ...]


@cache
def is_free(func: Any) -> bool:
    """Whether an operator computes nothing: it asks about tensors, views them, or takes memory."""
    returns = func._schema.returns
    views = all(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    return views or func._schema.name.split("::")[-1] in _FREE


def operation_of(func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Operation:
    """Return what an operator of the dispatcher does with these arguments; they need no data."""
    packet = getattr(func, "_overloadpacket", None)
    operands = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, torch.Tensor)]
    results = [tensor for tensor in tree_iter(output) if isinstance(tensor, torch.Tensor)]
    touched = (*results, *results) if packet in _LOOKUPS else (*operands, *results)
    nbytes = sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in touched)
    dtype = str(next((tensor.dtype for tensor in (*results, *operands)), torch.float32)).removeprefix("torch.")
    count = flop_registry.get(packet)
    flops = 0 if count is None else int(count(*args, **kwargs, out_val=output))
    if packet in _ON_THE_LEFT:
        left, right = args[_ON_THE_LEFT[packet] :][:2]
        return Operation("product", dtype, flops, nbytes, (left.shape[:-1].numel(), *right.shape[-2:]))
    if func in _CONVOLUTIONS:
        kernel, places = args[1].shape, results[0].shape[2:].numel() * results[0].shape[0]
        return Operation("convolution", dtype, flops, nbytes, (kernel[1], kernel[0], kernel[2:].numel(), places))
    if flops or packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        query, key, value = args[:3]
        sizes = (query.shape[:-2].numel(), query.shape[-2], key.shape[-2], query.shape[-1])
        return Operation("attention", dtype, flops or _attention_flops(query, key, value), nbytes, sizes)
    variants = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
    return Operation(" ".join((getattr(packet, "__name__", str(packet)), *variants)), dtype, 0, nbytes, (nbytes,))


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Two products: of queries with keys, and of what that gives with values."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def workspace_bytes(operation: Operation, touched: Iterable[torch.Tensor], device: str) -> int:
    """Return what an operator's kernel takes beside its inputs and outputs while it runs.

    Convolutions may lay all of them out anew. On the CPU products and attention go block by block, with blocks for each
    thread; attention in half precision packs keys and values first.

    Args:
        touched: inputs and outputs.
        device: its type.
    """
    if operation.operator == "convolution":
        return sum(tensor.nbytes for tensor in touched)
    if device != "cpu":
        return 0
    threads = torch.get_num_threads()
    if operation.operator == "product":
        return min(sum(tensor.nbytes for tensor in touched), threads * _PRODUCT_BYTES)
    if operation.operator == "attention":
        heads, queries, keys, width = operation.sizes
        rows, columns = min(queries, _BLOCK_ROWS), min(keys, _BLOCK_COLUMNS)
        packed = 2 * heads * keys * -(-width // _PACKED_WIDTH) * _PACKED_WIDTH * 2 if _is_half(operation) else 0
        return packed + threads * rows * (columns * 6 + width * 4)
    return 0


def kernel_bytes(operations: Iterable[Operation], device: str) -> int:
    """Return what libraries keep of the code that they make for kernels, of each kind once: oneDNN's in half precision
    on the CPU counts.
    """
    if device != "cpu":
        return 0
    return _KERNEL_BYTES * sum(1 for one in set(operations) if one.flops and _is_half(one))


def _is_half(operation: Operation) -> bool:
    return operation.dtype in ("bfloat16", "float16")
