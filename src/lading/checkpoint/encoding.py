"""How a tensor is stored in fewer bits than it computes in, as far as headers tell it. Plain Python.

Elements that lie together in memory lie together in the file, so that any run of whole blocks can be decoded alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from lading.checkpoint.header import FileStamp, TensorInfo
from lading.errors import CheckpointError


@dataclass(frozen=True)
class Companion:
    """A tensor that tells how to decode another.

    Attributes:
        stamp: of its file, when the header was read.
    """

    info: TensorInfo
    stamp: FileStamp

    @property
    def nbytes(self) -> int:
        """In the file."""
        return self.info.end - self.info.start

    @property
    def is_here(self) -> bool:
        """Whether its file is on this machine; the headers of a hub's files are read where they are."""
        return self.stamp.inode != 0

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Read its bytes from one on, up to another or to the last.

        Raises:
            CheckpointError: the file cannot be read, or has changed.
        """
        file, nbytes = self.info.file, (self.nbytes if end is None else end) - start
        try:
            with file.open("rb", buffering=0) as stream:
                stamp = FileStamp.of(os.fstat(stream.fileno()))
                data = os.pread(stream.fileno(), nbytes, self.info.start + start)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
        if stamp != self.stamp or len(data) != nbytes:
            raise CheckpointError(f"{file}: the file changed after its header was read: load it again")
        return data


@dataclass(frozen=True)
class Encoding:
    """How a tensor is stored.

    Attributes:
        scheme: its name: "Q4_K", "scaled float8_e4m3fn", "bitsandbytes nf4".
        block: elements that can only be decoded together.
        block_bytes: what a block takes in the file.
    """

    scheme: str
    block: int
    block_bytes: int

    def nbytes(self, elements: int) -> int:
        """Return the bytes that so many elements take, counted from the first of a block."""
        return -(-elements // self.block) * self.block_bytes

    def after(self, elements: int) -> Encoding:
        """Return the encoding of what follows so many elements, which are whole blocks."""
        return self


@dataclass(frozen=True)
class GgmlBlocks(Encoding):
    """Blocks of a type of ggml, each with its own scale.

    Attributes:
        number: of the type in ggml.
    """

    number: int


@dataclass(frozen=True)
class ScaledCodes(Encoding):
    """Codes of few bits, and a scale for each group of consecutive elements.

    An element is its code's value less its group's zero, times its group's scale, times `factor`; all in float32.

    Attributes:
        codes: torch's name of the codes' dtype; "high nibble first" or "low nibble first" for codes of four bits.
        scales: one for each group; where there is a `scale_table`, codes themselves.
        group: elements that share a scale.
        zeros: one for each group; None for 0.
        table: the values of codes of four bits; None for those of float4_e2m1fn.
        scale_of_scales: one number that all scales are multiplied by.
        scale_table: the values of the scales' codes. `nested` are their scales, one for each `nested_group`, and
            `offset` is added.
        tiled: rows and columns of the scales, where they lie in the tiles of 128 by 4 that tensor cores read.
        first: the elements before this tensor, of the tensor that the scales are for.
    """

    codes: str
    scales: Companion
    group: int
    factor: float = 1.0
    zeros: Companion | None = None
    table: Companion | None = None
    scale_of_scales: Companion | None = None
    scale_table: Companion | None = None
    nested: Companion | None = None
    nested_group: int = 1
    offset: float = 0.0
    tiled: tuple[int, int] | None = None
    first: int = 0

    def after(self, elements: int) -> ScaledCodes:
        return replace(self, first=self.first + elements)


@dataclass(frozen=True)
class ForeignEncoding(Encoding):
    """What lading cannot decode.

    Attributes:
        remedy: why, and what to do.
        shape_known: whether the tensor's shape is the network's.
    """

    remedy: str
    shape_known: bool = True


def encoding_of_package(scheme: str, package: str, shape_known: bool = True) -> ForeignEncoding:
    """Return the encoding of weights that only the package that made them decodes."""
    remedy = (
        f"load the folder that it was saved to, with its config.json, where {package} is installed "
        f"(`pip install {package}`), or another file of this model"
    )
    return ForeignEncoding(scheme, 1, 1, remedy, shape_known)
