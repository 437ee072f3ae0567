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

Decode: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""The bytes of whole blocks, and how many elements of the tensor come before them -> their elements, flat and new. Of
the last block of a tensor there may be more elements than the tensor has."""

Decoder: TypeAlias = Callable[[int, int], Decode]
"""The elements from one on, up to another -> what decodes these, in any order."""

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


def decode_into(target: torch.Tensor, stored: torch.Tensor, encoding: Encoding, first: int, decoder: Decoder) -> None:
    """Decode bytes into a flat tensor, with a cast, in the calling thread alone.

    Args:
        stored: the bytes of the target's elements.
        first: how many elements of the tensor come before them.

    Raises:
        CheckpointError: what tells how to decode them cannot be read any more.
    """
    decode = decoder(first, first + target.numel())
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

        return lambda _start, _end: decode

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
    return lambda _start, _end: decode_with_numpy


def _scaling_decoder(encoding: ScaledCodes) -> Decoder:
    scales = _Scales(encoding)
    table = None
    if encoding.codes.endswith("nibble first"):
        table = torch.tensor(_FLOAT4_VALUES) if encoding.table is None else _tensor(encoding.table).float()

    def decoder(start: int, end: int) -> Decode:
        low = (encoding.first + start) // encoding.group
        some, zeros = scales.read(low, -(-(encoding.first + end) // encoding.group))

        def decode(stored: torch.Tensor, first: int) -> torch.Tensor:
            values = _values(stored, encoding.codes, table)
            if some.numel() == 1:
                values = values if zeros is None else values.sub_(zeros)
                values.mul_(some)
            else:
                start = encoding.first + first
                groups = torch.arange(start, start + values.numel()).div_(encoding.group, rounding_mode="floor")
                groups = groups.sub_(low).clamp_(max=some.numel() - 1)  # a code more may follow the last element's
                values = values if zeros is None else values.sub_(zeros[groups])
                values.mul_(some[groups])
            return values if encoding.factor == 1.0 else values.mul_(encoding.factor)

        return decode

    return decoder


def _values(stored: torch.Tensor, codes: str, table: torch.Tensor | None) -> torch.Tensor:
    """What codes stand for, in float32, flat and new."""
    if table is None:
        return stored.view(getattr(torch, codes)).to(torch.float32, copy=True)
    high, low = (stored >> 4).int(), (stored & 15).int()
    pair = (high, low) if codes == "high nibble first" else (low, high)
    return table[torch.stack(pair, -1).view(-1)]


class _Scales:
    """The scales of a tensor, and its zeros, read as far as they are asked for: they may be an eighth of its bytes."""

    def __init__(self, encoding: ScaledCodes) -> None:
        self._encoding = encoding
        self._count = encoding.scales.info.nbytes // getattr(torch, encoding.scales.info.dtype).itemsize
        self._table = None if encoding.scale_table is None else _tensor(encoding.scale_table).float()
        whole = encoding.scale_of_scales
        self._of_scales = None if whole is None else _tensor(whole).float().view(())

    def read(self, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scales of some groups and their zeros, in float32; the only one where there is one for all."""
        encoding = self._encoding
        if self._count == 1:
            low, high = 0, 1
        scales = _out_of_tiles(encoding.scales, *encoding.tiled, low, high) if encoding.tiled else None
        scales = _tensor(encoding.scales, low, high) if scales is None else scales
        if self._table is not None:
            scales = self._table[scales.int()]
            if encoding.nested is not None:
                groups = torch.arange(low, high).div_(encoding.nested_group, rounding_mode="floor")
                nested = _tensor(encoding.nested, int(groups[0]), int(groups[-1]) + 1).float()
                scales = scales * nested[groups - groups[0]]
            scales = scales + encoding.offset
        scales = scales.float()
        scales = scales if self._of_scales is None else scales * self._of_scales
        return scales, None if encoding.zeros is None else _tensor(encoding.zeros, low, high).float()


def _out_of_tiles(scales: Companion, rows: int, columns: int, low: int, high: int) -> torch.Tensor:
    """Read some scales that lie in tiles, as they follow each other row by row.

    In a tile, row r is at 16 * (r % 32) + 4 * (r // 32).
    """
    across = -(-columns // _TILE_COLUMNS)
    first, last = low // columns // _TILE_ROWS, -(-high // columns // _TILE_ROWS)
    held = _tensor(scales, first * across * _TILE_ROWS * _TILE_COLUMNS, last * across * _TILE_ROWS * _TILE_COLUMNS)
    tiles = held.view(torch.uint8).view(last - first, across, 32, 4, _TILE_COLUMNS)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape((last - first) * _TILE_ROWS, -1)[:, :columns].reshape(-1)
    start = first * _TILE_ROWS * columns
    return plain[low - start : min(high, rows * columns) - start].view(held.dtype)


def _tensor(companion: Companion, low: int = 0, high: int | None = None) -> torch.Tensor:
    """Read elements of a companion, from one on, up to another or to the last."""
    dtype: torch.dtype = getattr(torch, companion.info.dtype)
    data = companion.read(low * dtype.itemsize, None if high is None else high * dtype.itemsize)
    return torch.frombuffer(bytearray(data), dtype=dtype)
