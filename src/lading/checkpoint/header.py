"""The safetensors header: parsed strictly, within bounds, before a byte of data is trusted.

A safetensors file is eight bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape,
data_offsets) and the data, in which the tensors follow each other without hole or overlap.
Source: https://github.com/huggingface/safetensors#format. Files of the first versions list their tensors in any
order, so the order of the names is free; that of the bytes is not.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.errors import CheckpointError
from lading.sizes import DTYPE_BITS, tensor_nbytes

if TYPE_CHECKING:
    from lading.checkpoint.encoding import Encoding

MAX_HEADER_BYTES = 100_000_000
"""The bound that the reference implementation sets."""

MAX_TENSORS = 1_000_000
"""Of one file: what a header holds takes several times its bytes of memory once it is parsed."""

MAX_RANK = 64
"""The highest rank that torch computes with."""

SAFETENSORS_DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F4": "float4_e2m1fn_x2",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file is still the one whose header was read."""

    device: int
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> FileStamp:
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    Attributes:
        dtype: torch's name of the dtype; of an encoded tensor, that of the decoded one.
        shape: sizes, outermost first; `()` for a scalar.
        file: the file that holds it.
        start: offset of its first byte in that file.
        end: offset one past its last byte.
        stride: in elements, where the bytes are not in row-major order; only torch files hold such tensors.
        encoding: where the elements are stored otherwise than they compute.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    stride: tuple[int, ...] | None = None
    encoding: Encoding | None = None

    @property
    def nbytes(self) -> int:
        """As it is stored."""
        return tensor_nbytes(self.dtype, self.shape) if self.encoding is None else self.end - self.start

    @property
    def kind(self) -> str:
        """What its elements are stored as: a dtype, or the name of an encoding."""
        return self.dtype if self.encoding is None else self.encoding.scheme

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.shape)) or 'scalar'} at {self.file.name}[{self.start}:{self.end}]"


@dataclass(frozen=True)
class FileInventory:
    """What one file holds, read without its data.

    Attributes:
        layout: shapes by name as the file nests them; only torch files nest. The hash is made of it.
        format: "safetensors", "torch zip", "torch legacy", "GGUF" or "DDUF".
        configs: what stands before the names of a network's tensors -> its config.json; only DDUF files hold them.
    """

    file: Path
    stamp: FileStamp
    format: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    layout: dict[str, Any]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_safetensors_header(file: Path) -> FileInventory:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: the header or the file's length breaks the format, or a bound.
    """
    with file.open("rb", buffering=0) as stream:
        stamp = FileStamp.of(os.fstat(stream.fileno()))
        if stamp.nbytes < 8:
            raise CheckpointError(f"{file}: {stamp.nbytes} bytes are too few for a checkpoint: fetch the file again")
        length = int.from_bytes(_read_exactly(stream.fileno(), file, 8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file}: not a safetensors file: its header claims {length} bytes, over the bound of "
                f"{MAX_HEADER_BYTES}: check what was saved here"
            )
        if length > stamp.nbytes - 8:
            raise CheckpointError(
                f"{file}: the header claims {length} bytes but only {stamp.nbytes - 8} follow: "
                "the file is truncated, or not safetensors: fetch it again"
            )
        header = _read_exactly(stream.fileno(), file, length)
    tensors, metadata = parse_header(header, file, stamp.nbytes - 8 - length)
    layout = {name: info.shape for name, info in tensors.items()}
    return FileInventory(file, stamp, "safetensors", tensors, metadata, layout)


def parse_header(header: bytes, file: Path, data_nbytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Check a header against the format and the length of the data that follows it.

    Returns:
        The tensors by name, in the order of their bytes, and the metadata.

    Raises:
        CheckpointError: whatever breaks the format, with the file, the tensor and the reason.
    """
    entries = _parse_json(header, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: the header's __metadata__ is not a map of strings: the file is damaged")
    base = 8 + len(header)
    tensors = [(name, _tensor_info(name, entry, file, base)) for name, entry in entries.items()]
    tensors.sort(key=lambda item: (item[1].start, item[1].end))
    end = base
    for name, info in tensors:
        if info.start != end:
            problem = "overlaps the tensor before it" if info.start < end else "leaves a hole before it"
            raise CheckpointError(
                f"{file}: tensor {name!r} {problem}: its data starts at byte {info.start - base}, "
                f"expected {end - base}: the header is damaged"
            )
        end = info.end
    if end - base != data_nbytes:
        what = "truncated" if end - base > data_nbytes else "followed by bytes that no tensor owns"
        raise CheckpointError(
            f"{file}: the header describes {end - base} bytes of data and the file holds {data_nbytes}: "
            f"it is {what}: fetch it again"
        )
    return dict(tensors), metadata


def check_tensor_name(name: str, file: Path) -> None:
    """Refuse names that no module can have and that could do harm as paths or text."""
    control = not name.isprintable() and any(unicodedata.category(character) == "Cc" for character in name)
    if not name or control or (".." in name and ".." in name.replace("\\", "/").split("/")):
        raise CheckpointError(f"{file}: {name!r} is not a name for a tensor: the file is damaged or hostile")
    if name.isascii():
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{file}: the tensor name {name!r} is not valid Unicode: the file is damaged") from None


def _read_exactly(descriptor: int, file: Path, nbytes: int) -> bytes:
    chunks = []
    while nbytes:
        chunk = os.read(descriptor, nbytes)
        if not chunk:
            raise CheckpointError(f"{file}: the file shrank while its header was read: is it still being written?")
        chunks.append(chunk)
        nbytes -= len(chunk)
    return b"".join(chunks)


def _parse_json(header: bytes, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{file}: the header names {twice!r} twice: the file is damaged or hostile")
        return entries

    if not header.startswith(b"{"):
        raise CheckpointError(f"{file}: not a safetensors file: its header does not start with {{")
    if header.count(b"{") + header.count(b"[") > 4 * MAX_TENSORS:  # each tensor has three, what is over is metadata's
        raise CheckpointError(
            f"{file}: the header describes more than {MAX_TENSORS} tensors: the file is damaged or hostile"
        )
    try:
        entries: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not valid JSON ({error}): the file is damaged") from None
    return entries


def _tensor_info(name: str, entry: Any, file: Path, base: int) -> TensorInfo:
    check_tensor_name(name, file)

    def damaged(what: str) -> CheckpointError:
        return CheckpointError(f"{file}: tensor {name!r} {what}: the header is damaged")

    if not isinstance(entry, dict):
        raise damaged("has no description")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or code not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"{file}: tensor {name!r} has the unknown dtype {code!r}: known are {', '.join(SAFETENSORS_DTYPES)}"
        )
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise damaged(f"has the impossible shape {_clip(shape)}")
    if len(shape) > MAX_RANK:
        raise damaged(f"has {len(shape)} axes, over the bound of {MAX_RANK}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(_is_count, offsets))
        or offsets[0] > offsets[1]
    ):
        raise damaged(f"has the impossible data offsets {_clip(offsets)}")
    dtype = SAFETENSORS_DTYPES[code]
    bits = DTYPE_BITS[dtype] * prod(shape)
    if bits != 8 * (offsets[1] - offsets[0]):
        raise damaged(
            f"of shape {_clip(shape)} and dtype {code} needs {bits / 8:g} bytes, "
            f"its data offsets give it {offsets[1] - offsets[0]}"
        )
    return TensorInfo(dtype, tuple(shape), file, base + offsets[0], base + offsets[1])


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
