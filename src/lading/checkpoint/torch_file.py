"""The inventory of a file written by `torch.save`, without torch: where the bytes lie of what its pickle names.

Source of the formats: torch/serialization.py (`_save` for the zip format, `_legacy_save` for the older one).
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

from lading.checkpoint.encoding import encoding_of_package
from lading.checkpoint.header import FileInventory, FileStamp, TensorInfo, check_tensor_name
from lading.checkpoint.notary import Notary, NotedTensor, RefusedError, Storage, WrappedTensor
from lading.errors import CheckpointError
from lading.sizes import tensor_nbytes

MAX_PICKLE_BYTES = 100_000_000
MAX_NESTING = 32
MAX_ENTRIES = 1_000_000
MAX_NAME_LENGTH = 1000
"""Of a tensor, the dicts that it is nested in included."""

MAX_SHARING = 16
"""How often the bytes of a file may be those of one tensor and another, on the average."""

WRAPPERS = ("state_dict", "module", "model_state")
"""A file whose only key is one of these holds its tensors below it."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

Extents = dict[str, tuple[int, int]]
"""Where each storage lies: key -> (offset in the file, bytes)."""


def read_torch_inventory(file: Path) -> FileInventory:
    """Read what a `.bin`, `.pt`, `.pth` or `.ckpt` file holds.

    Raises:
        CheckpointError: the file is damaged, holds code, or claims more elements than it has bytes for.
    """
    with file.open("rb") as stream:
        stamp = FileStamp.of(os.fstat(stream.fileno()))
        try:
            if zipfile.is_zipfile(stream):
                kind, root, extents = "torch zip", *_read_zip(stream)
            else:
                kind, root, extents = "torch legacy", *_read_legacy(stream, stamp.nbytes)
        except RefusedError as error:
            raise CheckpointError(
                f"{file}: {error}: it was not run. Load the file where you trust it, and save its tensors alone"
            ) from None
        except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way
            raise CheckpointError(f"{file}: not a readable torch file ({error or type(error).__name__})") from None
    if not isinstance(root, dict):
        is_tensor = isinstance(root, (NotedTensor, WrappedTensor))
        what = "tensor" if is_tensor else type(root).__name__.strip("_").lower()
        raise CheckpointError(f"{file}: holds a {what}, not named tensors: save a state dict")
    layout, tensors = _flatten(unwrap(root), file, extents, stamp.nbytes)
    claimed = sum(info.nbytes for info in tensors.values())
    if claimed > MAX_SHARING * stamp.nbytes:
        raise CheckpointError(
            f"{file}: its tensors share their bytes so often that they claim {claimed} of the file's {stamp.nbytes}: "
            "the file is damaged or hostile"
        )
    return FileInventory(file, stamp, kind, tensors, {}, layout)


def _read_zip(stream: IO[bytes]) -> tuple[Any, Extents]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        programs = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if not programs and any(entry.filename == "model_index.json" for entry in entries):
            raise RefusedError("it is a DDUF file, whose name has to end in .dduf")
        if len(programs) != 1:
            raise RefusedError(f"a torch file holds one data.pkl, this one {len(programs)}")
        (program,) = programs
        folder = program.filename.rpartition("/")[0]
        prefix = f"{folder}/data/" if folder else "data/"
        squeezed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
        if squeezed is not None:
            raise RefusedError(f"its entry {squeezed.filename!r} is compressed, which torch never writes")
        if program.file_size > MAX_PICKLE_BYTES:
            raise RefusedError(f"its data.pkl takes {program.file_size} bytes, over the bound of {MAX_PICKLE_BYTES}")
        extents = {
            entry.filename[len(prefix) :]: (_data_offset(stream, entry), entry.file_size)
            for entry in entries
            if entry.filename.startswith(prefix)
        }
        order = next((entry for entry in entries if entry.filename == f"{folder}/byteorder"), None)
        if order is not None and (order.file_size > 8 or archive.read(order) != b"little"):
            raise RefusedError("it was written on a big-endian machine")
        return Notary(io.BytesIO(archive.read(program))).load(), extents


def _data_offset(stream: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """The local header repeats the name and has an extra field of its own length (torch pads it to align the data)."""
    stream.seek(entry.header_offset)
    local = stream.read(30)
    if local[:4] != b"PK\x03\x04":
        raise RefusedError(f"its zip entry {entry.filename!r} has no local header")
    return entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_legacy(stream: IO[bytes], nbytes: int) -> tuple[Any, Extents]:
    """Magic, protocol, system, the object, the storages' keys; then each storage: its length and its bytes."""
    stream.seek(0)
    program = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    if Notary(program).load() != _LEGACY_MAGIC:
        raise RefusedError("it is a pickle that torch did not write")
    Notary(program).load()
    if Notary(program).load().get("little_endian") is not True:
        raise RefusedError("it was written on a big-endian machine")
    noted: dict[str, Storage] = {}

    class _LegacyNotary(Notary):
        def persistent_load(self, pid: Any) -> Storage:
            storage = super().persistent_load(pid)
            if noted.setdefault(storage.key, storage) != storage:
                raise RefusedError(f"its storage {storage.key!r} is described twice, differently")
            return storage

    root = _LegacyNotary(program).load()
    keys = Notary(program).load()
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise RefusedError("its list of storages is none")
    offset, extents = program.tell(), {}
    for key in keys:
        storage = noted[str(key)]
        length = tensor_nbytes(storage.dtype, (storage.elements,))
        extents[storage.key] = (offset + 8, length)
        offset += 8 + length
    if offset > nbytes:
        raise RefusedError(f"it is truncated: its storages end at byte {offset} of {nbytes}")
    return root, extents


def unwrap(root: dict[Any, Any]) -> dict[Any, Any]:
    """Return what a lone wrapper key holds, or the dict itself."""
    if len(root) == 1:
        ((name, inner),) = root.items()
        if name in WRAPPERS and isinstance(inner, dict):
            return inner
    return root


def _flatten(
    root: dict[Any, Any], file: Path, extents: Extents, nbytes: int
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    tensors: dict[str, TensorInfo] = {}
    entries = 0

    def walk(node: dict[Any, Any], prefix: str, depth: int) -> dict[str, Any]:
        if depth > MAX_NESTING:
            raise CheckpointError(f"{file}: its dicts nest deeper than {MAX_NESTING}: the file is damaged or hostile")
        nonlocal entries
        entries += len(node)
        if entries > MAX_ENTRIES:
            raise CheckpointError(f"{file}: it holds more than {MAX_ENTRIES} entries: the file is damaged or hostile")
        layout: dict[str, Any] = {}
        for name, value in node.items():
            if not isinstance(name, str):
                continue
            if len(prefix) + len(name) > MAX_NAME_LENGTH:
                raise CheckpointError(
                    f"{file}: it holds a name of more than {MAX_NAME_LENGTH} characters: the file is damaged or hostile"
                )
            if isinstance(value, (NotedTensor, WrappedTensor)):
                check_tensor_name(prefix + name, file)
                tensors[prefix + name] = _locate(prefix + name, value, file, extents, nbytes)
                layout[name] = value.shape
            elif isinstance(value, dict):
                layout[name] = walk(value, f"{prefix}{name}.", depth + 1)
        return layout

    return walk(root, "", 0), tensors


def _locate(name: str, tensor: NotedTensor | WrappedTensor, file: Path, extents: Extents, nbytes: int) -> TensorInfo:
    if isinstance(tensor, WrappedTensor):
        encoding = encoding_of_package(f"torchao {tensor.kind}", "torchao")
        return TensorInfo(tensor.dtype, tensor.shape, file, 0, 0, encoding=encoding)
    if tensor.storage.key not in extents:
        raise CheckpointError(f"{file}: tensor {name!r} has no data in the file: it is truncated or damaged")
    base, held = extents[tensor.storage.key]
    start = base + tensor_nbytes(tensor.dtype, (tensor.offset,))
    empty = 0 in tensor.shape
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    end = start if empty else start + tensor_nbytes(tensor.dtype, (last + 1,))
    if end > base + held or end > nbytes:
        raise CheckpointError(f"{file}: tensor {name!r} ends past its data: the file is truncated or damaged")
    contiguous = empty or tensor.stride == _row_major(tensor.shape, tensor.stride)
    return TensorInfo(tensor.dtype, tensor.shape, file, start, end, None if contiguous else tensor.stride)


def _row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense row-major tensor; an axis of size one may have any, and keeps its own."""
    steps, step = [], 1
    for size, own in zip(reversed(shape), reversed(stride), strict=True):
        steps.append(own if size == 1 else step)
        step *= size
    return tuple(reversed(steps))
