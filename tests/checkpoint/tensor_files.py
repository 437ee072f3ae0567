"""Files of tensors, laid out as a test wants them, and what the page cache holds of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from lading.checkpoint.mapping import resident_share

MB = 1 << 20
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}
SHAPES = st.lists(st.integers(0, 40), max_size=3)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def write(file: Path, tensors: dict[str, torch.Tensor], padding: int = 0) -> Path:
    """Write a safetensors file whose data starts at any offset."""
    entries: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        payload = bits(tensor)
        offsets = [len(data), len(data) + len(payload)]
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += payload
    header = json.dumps(entries).encode() + b" " * padding
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


def drop_from_cache(file: Path) -> None:
    """Ask the kernel to forget a file's pages until it has; pages that it is about to sort stay at the first time."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    for _ in range(100):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if resident_share(descriptor, file.stat().st_size) < 0.05:
            break
        time.sleep(0.05)
    os.close(descriptor)
