"""GGUF files as the package gguf writes them, and as nobody should."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Type = gguf.GGMLQuantizationType


def blocks_of(kind: Type, rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Rows of a type: quantised noise, or noise where the package only decodes it; scales are kept small numbers."""
    random = np.random.default_rng(seed)
    try:
        return gguf.quants.quantize(random.standard_normal((rows, columns), dtype=np.float32), kind)
    except NotImplementedError:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (rows * columns // block, block_bytes), dtype=np.uint8)
        halves = blocks.reshape(-1).view(np.uint16)
        halves &= 0xBFFF  # no float16 in it is infinite, or large
        return blocks.reshape(rows, -1)


def write_gguf(
    file: Path,
    tensors: Mapping[str, tuple[Type, np.ndarray[Any, Any]]],
    original_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write tensors, each already in its type, as rows of bytes or of numbers."""
    writer = gguf.GGUFWriter(file, "test")
    writer.add_string("general.name", "noise")
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(500)])
    for name, shape in (original_shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_state_dict(file: Path, state: Mapping[str, torch.Tensor], kinds: Mapping[str, Type]) -> Path:
    """Write a network's tensors as such files do: matrices in a type, the rest as numbers; five axes do not fit."""
    tensors: dict[str, tuple[Type, np.ndarray[Any, Any]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        data = tensor.detach().float().contiguous().numpy()
        if data.ndim > 4:
            shapes[name] = data.shape
            data = data.reshape(data.shape[0], -1)
        kind = kinds.get(name, Type.F32 if data.ndim == 1 else Type.F16)
        tensors[name] = kind, gguf.quants.quantize(data, kind)
    return write_gguf(file, tensors, shapes)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(
    tensors: list[tuple[str, tuple[int, ...], int, int]],
    metadata: bytes = b"",
    entries: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """The bytes of a header, up to the data: name, sizes innermost first, type and offset of each tensor."""
    found = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), entries))) + metadata
    for name, sizes, kind, offset in tensors:
        found += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return found + bytes(-len(found) % 32)
