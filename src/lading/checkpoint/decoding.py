"""Encoded bytes to the numbers that they stand for, stretch by stretch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

import torch

from lading.checkpoint.encoding import Companion, Encoding, ForeignEncoding, GgmlBlocks, ScaledCodes
from lading.checkpoint.header import TensorInfo
from lading.errors import CheckpointError

STRETCH_ELEMENTS = 1 << 17
"""Decoded at once: some hundreds of kilobytes on the way, whatever the tensor."""

Decoder: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""The bytes of whole blocks, and how many elements of the tensor come before them -> their elements, flat. Of the last
block of a tensor there may be more elements than the tensor has."""

_FLOAT4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the sixteen codes of float4_e2m1fn stand for. Source: OCP Microscaling Formats 1.0, section 5.3.3."""

_TILE_ROWS, _TILE_COLUMNS = 128, 4
"""Source: https://docs.nvidia.com/cuda/cublas/#d-block-scaling-factors-layout"""


def decoder_of(info: TensorInfo) -> Decoder:
    """Return what decodes a tensor.

    Raises:
        CheckpointError: lading cannot, or a package that it needs for that is not installed.
    """
    match info.encoding:
        case GgmlBlocks() as blocks:
            return _ggml_decoder(info, blocks)
        case ScaledCodes() as codes:
            return _scaling_decoder(codes)
        case ForeignEncoding(scheme=scheme, remedy=remedy):
            raise CheckpointError(f"{info.file}: its weights are stored as {scheme}: {remedy}")
    raise CheckpointError(f"{info.file}: {info.kind} is nothing that has to be decoded")


def decode_into(target: torch.Tensor, stored: torch.Tensor, encoding: Encoding, first: int, decode: Decoder) -> None:
    """Decode bytes into a flat tensor, with a cast, in the calling thread alone.

    Args:
        stored: the bytes of the target's elements.
        first: how many elements of the tensor come before them.
    """
    step = max(STRETCH_ELEMENTS // encoding.block, 1) * encoding.block
    for start in range(0, target.numel(), step):
        part = target[start : start + step]
        begin = encoding.nbytes(start)
        part.copy_(decode(stored[begin : begin + encoding.nbytes(part.numel())], first + start)[: part.numel()])


def _ggml_decoder(info: TensorInfo, encoding: GgmlBlocks) -> Decoder:
    """Decode as diffusers does, bit for bit; what that does not know, as the package gguf does."""
    try:
        gguf: Any = import_module("gguf")
        known: Any = import_module("diffusers.quantizers.gguf.utils")
    except ImportError as error:
        raise CheckpointError(
            f"{info.file}: to decode GGUF ({encoding.scheme}) the package gguf is needed ({error}): "
            "`pip install 'lading[gguf]'`"
        ) from None
    try:
        kind = gguf.GGMLQuantizationType(encoding.number)
    except ValueError:
        raise CheckpointError(f"{info.file}: the package gguf does not know {encoding.scheme}: update it") from None
    if kind in known.SUPPORTED_GGUF_QUANT_TYPES:

        def decode(stored: torch.Tensor, _first: int) -> torch.Tensor:
            blocks = known.GGUFParameter(stored.view(-1, encoding.block_bytes), quant_type=kind)
            return known.dequantize_gguf_tensor(blocks).view(-1)  # type: ignore[no-any-return] # it is untyped

        return decode

    def decode_with_numpy(stored: torch.Tensor, _first: int) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # damaged scales are infinite; that is no news
            decoded = gguf.quants.dequantize(stored.view(-1, encoding.block_bytes).numpy(), kind)
        return torch.from_numpy(decoded).view(-1)

    try:
        decode_with_numpy(torch.zeros(encoding.block_bytes, dtype=torch.uint8), 0)
    except NotImplementedError:
        raise CheckpointError(
            f"{info.file}: neither diffusers nor the package gguf decodes {encoding.scheme}: fetch another "
            "quantisation of this model"
        ) from None
    return decode_with_numpy


def _scaling_decoder(encoding: ScaledCodes) -> Decoder:
    scales, group = _scales(encoding), encoding.group
    table = None
    if encoding.codes.endswith("nibble first"):
        table = torch.tensor(_FLOAT4_VALUES) if encoding.table is None else _tensor(encoding.table).float()

    def decode(stored: torch.Tensor, first: int) -> torch.Tensor:
        values = _values(stored, encoding.codes, table)
        if scales.numel() == 1:
            values.mul_(scales)
        else:
            start = encoding.first + first
            groups = torch.arange(start, start + values.numel()).div_(group, rounding_mode="floor")
            values.mul_(scales[groups.clamp_(max=scales.numel() - 1)])
        return values if encoding.factor == 1.0 else values.mul_(encoding.factor)

    return decode


def _values(stored: torch.Tensor, codes: str, table: torch.Tensor | None) -> torch.Tensor:
    """What codes stand for, in float32, flat and new."""
    if table is None:
        return stored.view(getattr(torch, codes)).to(torch.float32, copy=True)
    high, low = (stored >> 4).int(), (stored & 15).int()
    pair = (high, low) if codes == "high nibble first" else (low, high)
    return table[torch.stack(pair, -1).view(-1)]


def _scales(encoding: ScaledCodes) -> torch.Tensor:
    """All scales of a tensor, in float32, in the order of its groups."""
    scales = _tensor(encoding.scales)
    if encoding.tiled is not None:
        scales = _out_of_tiles(scales, *encoding.tiled)
    if encoding.scale_table is not None:
        scales = _tensor(encoding.scale_table).float()[scales.view(-1).int()]
        if encoding.nested is not None:
            nested = _tensor(encoding.nested).float().view(-1).repeat_interleave(encoding.nested_group)
            scales = scales * nested[: scales.numel()]
        scales = scales + encoding.offset
    scales = scales.float().reshape(-1)
    if encoding.scale_of_scales is not None:
        scales = scales * _tensor(encoding.scale_of_scales).float().view(())
    return scales


def _out_of_tiles(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put scales into rows: in a tile, row r is at 16 * (r % 32) + 4 * (r // 32)."""
    down, across = -(-rows // _TILE_ROWS), -(-columns // _TILE_COLUMNS)
    tiles = scales.view(torch.uint8).view(down, across, 32, 4, _TILE_COLUMNS)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(down * _TILE_ROWS, across * _TILE_COLUMNS)
    return plain[:rows, :columns].contiguous().view(scales.dtype)


def _tensor(companion: Companion) -> torch.Tensor:
    info = companion.info
    return torch.frombuffer(bytearray(companion.read()), dtype=getattr(torch, info.dtype)).view(info.shape)
