"""The inventory of a file written by `torch.save`, without torch and without running what its pickle asks for.

A pickle is a program. This reader runs it on a machine that knows a few harmless names: dicts, the functions that
rebuild tensors, replaced by ones that only note shape, dtype and where the bytes lie, and what training scripts save
beside the weights, replaced by nothing. Everything else is refused by name. Source of the formats:
torch/serialization.py (`_save` for the zip format, `_legacy_save` for the older one).
"""

from __future__ import annotations

import io
import os
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import BUILD
from typing import IO, Any, ClassVar, NoReturn

from lading.checkpoint.encoding import encoding_of_package
from lading.checkpoint.header import MAX_RANK, FileInventory, FileStamp, TensorInfo, check_tensor_name
from lading.checkpoint.unpickling import MAX_ARGUMENTS, BoundedUnpickler
from lading.errors import CheckpointError
from lading.sizes import DTYPE_BITS, tensor_nbytes

MAX_PICKLE_BYTES = 100_000_000
MAX_NESTING = 32
MAX_ENTRIES = 1_000_000
MAX_NAME_LENGTH = 1000
"""Of a tensor, the dicts that it is nested in included."""

MAX_SHARING = 16
"""How often the bytes of a file may be those of one tensor and another, on the average."""

WRAPPERS = ("state_dict", "module", "model_state")
"""A file whose only key is one of these holds its tensors below it."""

_STORAGES: dict[str, str] = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_TENSOR_PACKAGE = "torchao"
"""Its tensors are made of others, which are no storages of their own."""

_MAX_TENSOR_CLASSES = 100
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class _Dtype:
    name: str


class _Nothing:
    """Whatever a training script saved beside the weights: it takes what a pickle puts into it, and keeps none."""

    def __new__(cls, *_arguments: object, **_options: object) -> _Nothing:
        return super().__new__(cls)

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...

    def update(self, values: object) -> None: ...


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Wrapped:
    """A tensor that a package makes of others.

    Attributes:
        kind: its class.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]


class _RefusedError(Exception):
    """The pickle asks for something that a checkpoint has no business with."""


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
        except _RefusedError as error:
            raise CheckpointError(
                f"{file}: {error}: it was not run. Load the file where you trust it, and save its tensors alone"
            ) from None
        except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way
            raise CheckpointError(f"{file}: not a readable torch file ({error or type(error).__name__})") from None
    if not isinstance(root, dict):
        what = type(root).__name__.strip("_").lower()
        raise CheckpointError(f"{file}: holds a {what}, not named tensors: save a state dict")
    layout, tensors = _flatten(unwrap(root), file, extents, stamp.nbytes)
    claimed = sum(info.nbytes for info in tensors.values())
    if claimed > MAX_SHARING * stamp.nbytes:
        raise CheckpointError(
            f"{file}: its tensors share their bytes so often that they claim {claimed} of the file's {stamp.nbytes}: "
            "the file is damaged or hostile"
        )
    return FileInventory(file, stamp, kind, tensors, {}, layout)


class _Notary(BoundedUnpickler):
    """Unpickles to notes."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(BoundedUnpickler.dispatch)

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._tensor_classes: dict[str, type[_Nothing]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if module == "torch" and name in DTYPE_BITS:
            return _Dtype(name)
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Dtype(_STORAGES[name])
        module = _NAMES_OF_PYTHON_2.get(module, module)
        package = module.partition(".")[0]
        if package == _TENSOR_PACKAGE:
            return self._tensor_class(name)
        if package in _BESIDE_WEIGHTS or (module, name) in _BESIDE_WEIGHTS:
            return _Nothing
        raise _RefusedError(f"it holds code, {module}.{name}")

    def _tensor_class(self, name: str) -> type[_Nothing]:
        if name not in self._tensor_classes and len(self._tensor_classes) == _MAX_TENSOR_CLASSES:
            raise _RefusedError(f"it names more than {_MAX_TENSOR_CLASSES} classes of {_TENSOR_PACKAGE}")
        return self._tensor_classes.setdefault(name, type(name, (_Nothing,), {}))

    def persistent_load(self, pid: Any) -> _Storage:
        tag, storage, key, _location, elements, *view = pid
        if view and view[0] is not None:
            raise _RefusedError("its storages are views of each other, as torch has not written since 0.4")
        plain = isinstance(storage, _Dtype) and type(key) in (str, int) and type(elements) is int
        if tag != "storage" or not plain or elements < 0:
            raise _RefusedError(f"it refers to an unknown object, {reprlib.repr(tag)}")
        return _Storage(str(key), storage.name, elements)

    def get_extension(self, code: int) -> NoReturn:
        raise _RefusedError(f"it holds code, the copyreg extension {code}")

    def load_build(self) -> None:
        self.stack.pop()  # the state of an OrderedDict: `_metadata`, which no tensor needs

    dispatch[BUILD[0]] = load_build


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_rest: object
) -> _Tensor:
    return _note(storage, storage.dtype, offset, shape, stride)


def _rebuild_typed_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    dtype: _Dtype,
    *_rest: object,
) -> _Tensor:
    return _note(storage, dtype.name, offset, shape, stride)


def _note(storage: _Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> _Tensor:
    if len(shape) > MAX_RANK:
        raise _RefusedError(f"a tensor has {len(shape)} axes, over the bound of {MAX_RANK}")
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _RefusedError(f"a tensor has the impossible shape {reprlib.repr(shape)} or stride {reprlib.repr(stride)}")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    claimed, held = tensor_nbytes(dtype, shape), tensor_nbytes(storage.dtype, (storage.elements,))
    if claimed and (claimed > held or tensor_nbytes(dtype, (last + 1,)) > held):
        raise _RefusedError(f"a tensor of shape {reprlib.repr(shape)} claims {claimed} bytes, its storage has {held}")
    return _Tensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: _Tensor, *_rest: object) -> _Tensor:
    return tensor


def _rebuild_wrapped(kind: type, dtype: _Dtype, shape: tuple[int, ...], *_rest: object) -> _Wrapped:
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise _RefusedError(f"a tensor has the impossible shape {reprlib.repr(shape)}")
    return _Wrapped(kind.__name__, dtype.name, tuple(shape))


def _rebuild_by(rebuild: Callable[..., Any], _kind: object, arguments: tuple[Any, ...], *_rest: object) -> Any:
    known = rebuild in (_rebuild_tensor, _rebuild_typed_tensor, _rebuild_wrapped)
    parts = [one for one in (arguments, *arguments[:MAX_ARGUMENTS]) if isinstance(one, (list, tuple))]
    if not known or any(len(one) > MAX_ARGUMENTS for one in parts):
        raise _RefusedError("it rebuilds a tensor in a way that torch has none of")
    return rebuild(*arguments)


def _dict(*_arguments: object) -> dict[Any, Any]:
    return {}


def _tuple(sizes: tuple[int, ...] = ()) -> tuple[int, ...]:
    return tuple(sizes)


def _ordered_dict(entries: Iterable[tuple[Any, Any]] = ()) -> OrderedDict[str, Any]:
    return OrderedDict((name, value) for name, value in entries if isinstance(name, str))


def _nothing(*_arguments: object) -> None:
    return None


_HARMLESS: dict[tuple[str, str], Callable[..., Any] | type] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _dict,
    ("torch", "Size"): _tuple,
    ("torch", "device"): _nothing,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed_tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_by,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapped,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.serialization", "_get_layout"): _nothing,
}

_BESIDE_WEIGHTS: frozenset[str | tuple[str, str]] = frozenset(
    (
        "lightning",
        "lightning_fabric",
        "omegaconf",
        "pytorch_lightning",
        ("_codecs", "encode"),
        ("argparse", "Namespace"),
        ("builtins", "dict"),
        ("builtins", "int"),
        ("builtins", "list"),
        ("builtins", "set"),
        ("copyreg", "_reconstructor"),
        ("datetime", "datetime"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Tensor"),
        ("torch.nn.parameter", "Parameter"),
        ("typing", "Any"),
    )
)
"""What checkpoints of training hold beside weights: options, counters, states of callbacks. Packages are whole."""

_NAMES_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What the second pickle protocol, which torch writes, calls modules."""

Extents = dict[str, tuple[int, int]]
"""Where each storage lies: key -> (offset in the file, bytes)."""


def _read_zip(stream: IO[bytes]) -> tuple[Any, Extents]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        programs = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if not programs and any(entry.filename == "model_index.json" for entry in entries):
            raise _RefusedError("it is a DDUF file, whose name has to end in .dduf")
        if len(programs) != 1:
            raise _RefusedError(f"a torch file holds one data.pkl, this one {len(programs)}")
        (program,) = programs
        folder = program.filename.rpartition("/")[0]
        prefix = f"{folder}/data/" if folder else "data/"
        squeezed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
        if squeezed is not None:
            raise _RefusedError(f"its entry {squeezed.filename!r} is compressed, which torch never writes")
        if program.file_size > MAX_PICKLE_BYTES:
            raise _RefusedError(f"its data.pkl takes {program.file_size} bytes, over the bound of {MAX_PICKLE_BYTES}")
        extents = {
            entry.filename[len(prefix) :]: (_data_offset(stream, entry), entry.file_size)
            for entry in entries
            if entry.filename.startswith(prefix)
        }
        order = next((entry for entry in entries if entry.filename == f"{folder}/byteorder"), None)
        if order is not None and (order.file_size > 8 or archive.read(order) != b"little"):
            raise _RefusedError("it was written on a big-endian machine")
        return _Notary(io.BytesIO(archive.read(program))).load(), extents


def _data_offset(stream: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """The local header repeats the name and has an extra field of its own length (torch pads it to align the data)."""
    stream.seek(entry.header_offset)
    local = stream.read(30)
    if local[:4] != b"PK\x03\x04":
        raise _RefusedError(f"its zip entry {entry.filename!r} has no local header")
    return entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_legacy(stream: IO[bytes], nbytes: int) -> tuple[Any, Extents]:
    """Magic, protocol, system, the object, the storages' keys; then each storage: its length and its bytes."""
    stream.seek(0)
    program = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    if _Notary(program).load() != _LEGACY_MAGIC:
        raise _RefusedError("it is a pickle that torch did not write")
    _Notary(program).load()
    if _Notary(program).load().get("little_endian") is not True:
        raise _RefusedError("it was written on a big-endian machine")
    noted: dict[str, _Storage] = {}

    class _LegacyNotary(_Notary):
        def persistent_load(self, pid: Any) -> _Storage:
            storage = super().persistent_load(pid)
            if noted.setdefault(storage.key, storage) != storage:
                raise _RefusedError(f"its storage {storage.key!r} is described twice, differently")
            return storage

    root = _LegacyNotary(program).load()
    keys = _Notary(program).load()
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise _RefusedError("its list of storages is none")
    offset, extents = program.tell(), {}
    for key in keys:
        storage = noted[str(key)]
        length = tensor_nbytes(storage.dtype, (storage.elements,))
        extents[storage.key] = (offset + 8, length)
        offset += 8 + length
    if offset > nbytes:
        raise _RefusedError(f"it is truncated: its storages end at byte {offset} of {nbytes}")
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
            if isinstance(value, (_Tensor, _Wrapped)):
                check_tensor_name(prefix + name, file)
                tensors[prefix + name] = _locate(prefix + name, value, file, extents, nbytes)
                layout[name] = value.shape
            elif isinstance(value, dict):
                layout[name] = walk(value, f"{prefix}{name}.", depth + 1)
        return layout

    return walk(root, "", 0), tensors


def _locate(name: str, tensor: _Tensor | _Wrapped, file: Path, extents: Extents, nbytes: int) -> TensorInfo:
    if isinstance(tensor, _Wrapped):
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
