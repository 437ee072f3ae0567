"""The header of a GGUF file: parsed strictly, within bounds, before a byte of data is trusted.

A GGUF file is a magic number, a version, two counts, metadata (key, type, value), a description of each tensor (name,
sizes innermost first, type, offset) and, from the next multiple of the alignment on, the data.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from math import prod
from pathlib import Path
from typing import IO, Any

from lading.checkpoint.encoding import GgmlBlocks
from lading.checkpoint.header import MAX_HEADER_BYTES, FileInventory, FileStamp, TensorInfo, check_tensor_name
from lading.errors import CheckpointError
from lading.sizes import tensor_nbytes

MAX_RANK = 8
"""ggml itself has four axes."""

_MAX_TENSORS = 1_000_000
_MAX_METADATA = 100_000
_MAX_STRINGS = 3_000_000
"""Of all arrays together: the vocabulary of a language model has some 500,000."""

_MAX_NAME_BYTES = 65_535
_MAX_TEXT = 1_000
"""A longer text is no metadata that anybody looks at."""

_VERSIONS = (2, 3)
_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> how `struct` reads it."""
_STRING, _ARRAY = 8, 9

_PLAIN_TYPES = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}

_BLOCK_TYPES = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Number of a ggml type -> its name, the elements of a block, and the bytes that a block takes."""

_HALF_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""What diffusers computes in float16, the dtype of these types' scales; the others it computes in float32."""

_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Metadata of files for ComfyUI: the shape of a tensor that ggml's four axes, or its blocks, could not hold."""


def read_gguf_header(file: Path) -> FileInventory:
    """Read and check the header of a GGUF file. Shapes are as torch has them, outermost first.

    Raises:
        CheckpointError: the header or the file's length breaks the format, or a bound.
    """
    with file.open("rb", buffering=0) as stream:
        stamp = FileStamp.of(os.fstat(stream.fileno()))
        header = _Header(stream, file, stamp.nbytes)
        tensor_count, metadata_count = _counts(header)
        metadata = _metadata(header, metadata_count)
        described = [_description(header) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise header.damaged(f"has the impossible alignment {alignment!r:.40}")
        base = -(-header.offset // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, sizes, number, offset in described:
        if name in tensors:
            raise header.damaged(f"names {name!r} twice")
        if offset % alignment:
            raise header.damaged(f"places tensor {name!r} at {offset}, which is no multiple of {alignment}")
        shape = _original_shape(metadata.get(_ORIGINAL_SHAPE + name), sizes) or tuple(reversed(sizes))
        tensors[name] = _tensor_info(header, name, sizes, shape, number, base + offset)
    _require_apart(header, tensors, stamp.nbytes)
    layout = {name: info.shape for name, info in tensors.items()}
    texts = {key: str(value) for key, value in metadata.items() if not isinstance(value, tuple)}
    return FileInventory(file, stamp, "GGUF", tensors, texts, layout)


class _Header:
    """The beginning of a file, read as far as it is asked for."""

    def __init__(self, stream: IO[bytes], file: Path, nbytes: int) -> None:
        self.file = file
        self.offset = 0
        self._stream = stream
        self._nbytes = nbytes
        self._read = bytearray()

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: the GGUF header {what}: the file is damaged or hostile: fetch it again")

    def need(self, count: int) -> int:
        """Have so many more bytes, and return where they begin."""
        start, end = self.offset, self.offset + count
        if end > len(self._read):
            if end > self._nbytes:
                raise self.damaged(f"runs past the end of the file, {self._nbytes} bytes")
            if end > MAX_HEADER_BYTES:
                raise self.damaged(f"takes more than the bound of {MAX_HEADER_BYTES} bytes")
            while end > len(self._read):
                chunk = os.read(self._stream.fileno(), max(1 << 18, end - len(self._read)))
                if not chunk:
                    raise CheckpointError(f"{self.file}: the file shrank while its header was read: load it again")
                self._read += chunk
        self.offset = end
        return start

    def number(self, code: str) -> Any:
        """Read a little-endian number; codes are those of `struct`."""
        return struct.unpack_from(f"<{code}", self._read, self.need(struct.calcsize(code)))[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{count}{code}", self._read, self.need(count * struct.calcsize(code)))

    def text(self, most: int) -> str:
        """Read a text, at most so many bytes of it."""
        length = self.number("Q")
        start = self.need(length)
        try:
            return self._read[start : start + min(length, most)].decode(errors="strict" if length <= most else "ignore")
        except UnicodeDecodeError:
            raise self.damaged("holds a text that is not UTF-8") from None

    def skip_texts(self, count: int) -> None:
        """Pass over texts that follow each other; a vocabulary has hundreds of thousands."""
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self.offset + 8 > len(self._read):
                self.need(8)
                self.offset -= 8
            self.offset += 8 + length_at(self._read, self.offset)[0]
        self.need(0)


def _counts(header: _Header) -> tuple[int, int]:
    header.need(4)
    version = header.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "was written on a big-endian machine" if swapped in _VERSIONS else f"has version {version}"
        raise CheckpointError(f"{header.file}: this GGUF file {what}: lading reads versions 2 and 3, little-endian")
    tensors, metadata = header.numbers("Q", 2)
    if tensors > _MAX_TENSORS or metadata > _MAX_METADATA:
        raise header.damaged(f"claims {tensors} tensors and {metadata} entries of metadata, more than any model has")
    return tensors, metadata


def _metadata(header: _Header, count: int) -> dict[str, Any]:
    """Read the metadata: numbers and short texts, and short arrays of whole numbers; the rest is passed over."""
    found: dict[str, Any] = {}
    strings = 0
    for _ in range(count):
        key, kind = header.text(_MAX_NAME_BYTES), header.number("I")
        if key in found:
            raise header.damaged(f"names the metadata {key!r:.80} twice")
        if kind == _STRING:
            found[key] = header.text(_MAX_TEXT)
        elif kind == _ARRAY:
            kind, length = header.number("I"), header.number("Q")
            if kind == _STRING:
                strings += length
                if strings > _MAX_STRINGS:
                    raise header.damaged(f"holds more than {_MAX_STRINGS} texts")
                header.skip_texts(length)
            elif kind not in _SCALARS:
                raise header.damaged(f"has an array of type {kind} as {key!r:.80}, which nobody writes")
            elif length <= MAX_RANK and _SCALARS[kind] in "IiQq":
                found[key] = header.numbers(_SCALARS[kind], length)
            else:
                header.need(length * struct.calcsize(_SCALARS[kind]))
        elif kind in _SCALARS:
            found[key] = header.number(_SCALARS[kind])
        else:
            raise header.damaged(f"has a value of the unknown type {kind} as {key!r:.80}")
    return found


def _description(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Read a tensor's name, sizes innermost first, type and offset in the data."""
    name = header.text(_MAX_NAME_BYTES)
    check_tensor_name(name, header.file)
    rank = header.number("I")
    if rank > MAX_RANK:
        raise header.damaged(f"gives tensor {name!r} {rank} axes")
    sizes = header.numbers("Q", rank)
    return name, sizes, header.number("I"), header.number("Q")


def _original_shape(shape: Any, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return a shape from the metadata, if it is one of as many elements."""
    fits = isinstance(shape, tuple) and all(size >= 0 for size in shape) and prod(shape) == prod(sizes)
    return shape if fits else None


def _tensor_info(
    header: _Header, name: str, sizes: tuple[int, ...], shape: tuple[int, ...], number: int, start: int
) -> TensorInfo:
    if prod(sizes) >= 2**63:
        raise header.damaged(f"gives tensor {name!r} the impossible sizes {sizes}")
    if number in _PLAIN_TYPES:
        dtype = _PLAIN_TYPES[number]
        return TensorInfo(dtype, shape, header.file, start, start + tensor_nbytes(dtype, shape))
    if number not in _BLOCK_TYPES:
        raise CheckpointError(
            f"{header.file}: tensor {name!r} has the unknown ggml type {number}: fetch another quantisation of it"
        )
    scheme, block, block_bytes = _BLOCK_TYPES[number]
    if not sizes or sizes[0] % block:
        raise header.damaged(f"gives tensor {name!r} rows that are no whole blocks of {scheme}, sizes {sizes}")
    encoding = GgmlBlocks(scheme, block, block_bytes, number)
    dtype = "float16" if scheme in _HALF_TYPES else "float32"
    return TensorInfo(dtype, shape, header.file, start, start + encoding.nbytes(prod(sizes)), encoding=encoding)


def _require_apart(header: _Header, tensors: dict[str, TensorInfo], nbytes: int) -> None:
    """Refuse tensors that overlap or end past the file; between them there may be padding."""
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start < end and info.end > info.start:
            raise header.damaged(f"lets tensor {name!r} overlap the one before it")
        end = max(end, info.end)
        if end > nbytes:
            raise CheckpointError(
                f"{header.file}: tensor {name!r} ends at byte {end} of {nbytes}: the file is truncated: fetch it again"
            )
