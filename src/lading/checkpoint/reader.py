"""Bytes of a checkpoint's files into memory, and memory as tensors.

Two ways lead there. Mapped: tensors are views of the file's pages, nothing is copied, and pages load when touched.
Copied: the bytes are read into memory that the tensors own. `LADING_READ=mapped` or `LADING_READ=copied` forces one.
"""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from lading.checkpoint.header import FileInventory, FileStamp, TensorInfo
from lading.errors import CheckpointError, LadingError

if TYPE_CHECKING:
    import torch

Way: TypeAlias = Literal["mapped", "copied"]

_CHUNK_BYTES = 1 << 30
_log = logging.getLogger(__name__)


def reading_way(default: Way = "mapped") -> Way:
    """Return the way that `LADING_READ` forces, else the default."""
    way = os.environ.get("LADING_READ", default)
    if way not in get_args(Way):
        raise LadingError(f"LADING_READ={way!r} is no way to read: use one of {', '.join(get_args(Way))}")
    return cast("Way", way)


class FileReader:
    """Reads the tensors of one file.

    The file must stay as it was when its header was read: a change is an error, at the start and after every copy.
    """

    def __init__(self, inventory: FileInventory, way: Way = "mapped") -> None:
        self._file = inventory.file
        self._stamp = inventory.stamp
        self._way = way
        self._map: mmap.mmap | None = None
        try:
            self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{self._file}: cannot be read: {error.strerror}") from None
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._require_unchanged()
        _log.debug("%s: %s, %d bytes", self._file, way, self._stamp.nbytes)

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Return a tensor of this file on the CPU in the file's dtype.

        Raises:
            CheckpointError: the file has changed, or torch has no such dtype.
        """
        import torch

        dtype = torch_dtype_of(info)
        shape = packed_shape(info)
        nbytes = info.end - info.start
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        if self._way == "mapped" and info.start % dtype.itemsize == 0:
            flat = torch.frombuffer(self._mapping(), dtype=dtype, count=nbytes // dtype.itemsize, offset=info.start)
        else:
            memory = torch.empty(nbytes, dtype=torch.uint8)
            self.read_into(memory.numpy().data, info.start)
            flat = memory.view(dtype)
        return flat.view(shape) if info.stride is None else flat.as_strided(shape, info.stride)

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill memory with the file's bytes from an offset on.

        Raises:
            CheckpointError: the file ends before, cannot be read, or has changed.
        """
        done = 0
        while done < len(memory):
            try:
                count = os.preadv(self._descriptor, [memory[done : done + _CHUNK_BYTES]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self._file}: reading failed at byte {offset + done}: {error.strerror}"
                ) from None
            if count == 0:
                raise CheckpointError(
                    f"{self._file}: the file shrank while it was read: load it again when it is whole"
                )
            done += count
        self._require_unchanged()

    def close(self) -> None:
        """Close the file; tensors that were mapped stay valid."""
        self._close()

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            self._require_unchanged()
            # A private mapping: tensors are writable, the file never changes.
            self._map = mmap.mmap(self._descriptor, self._stamp.nbytes, access=mmap.ACCESS_COPY)
        return self._map

    def _require_unchanged(self) -> None:
        if FileStamp.of(os.fstat(self._descriptor)) != self._stamp:
            raise CheckpointError(f"{self._file}: the file changed after its header was read: load it again")


def torch_dtype_of(info: TensorInfo) -> torch.dtype:
    """Return torch's dtype of a stored tensor.

    Raises:
        CheckpointError: the installed torch has no such dtype.
    """
    import torch

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


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype given as such or by name.

    Raises:
        LadingError: no dtype has that name, or this torch lacks it.
    """
    import torch

    from lading.sizes import dtype_name

    if isinstance(dtype, torch.dtype):
        return dtype
    if not isinstance(dtype, str):
        raise LadingError(f"{dtype!r} is no dtype: give a torch dtype or its name")
    found = getattr(torch, dtype_name(dtype), None)
    if not isinstance(found, torch.dtype):
        raise LadingError(f"torch {torch.__version__} has no dtype {dtype!r}: use another")
    return found


def cast_tensor(tensor: torch.Tensor, dtype: torch.dtype | None, device: str | torch.device) -> torch.Tensor:
    """Return a tensor on a device, a floating-point one in a dtype; nothing is copied when nothing changes."""
    return tensor.to(device=device, dtype=dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
