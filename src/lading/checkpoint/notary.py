"""What the pickle in a file written by `torch.save` says of its tensors, without running what it asks for.

A pickle is a program. This reader runs it on a machine that knows a few harmless names: dicts, the functions that
rebuild tensors, replaced by ones that only note shape, dtype and where the bytes lie, and what training scripts save
beside the weights, replaced by nothing. Everything else is refused by name.
"""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pickle import BUILD
from typing import IO, Any, ClassVar, NoReturn

from lading.checkpoint.header import MAX_RANK
from lading.checkpoint.unpickling import MAX_ARGUMENTS, BoundedUnpickler
from lading.sizes import DTYPE_BITS, tensor_nbytes

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
class Storage:
    """Bytes that tensors are views of.

    Attributes:
        key: its name in the file.
    """

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class NotedTensor:
    """A tensor; offset and strides are in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class WrappedTensor:
    """A tensor that a package makes of others.

    Attributes:
        kind: its class.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]


class RefusedError(Exception):
    """The pickle asks for something that a checkpoint has no business with."""


class Notary(BoundedUnpickler):
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
        raise RefusedError(f"it holds code, {module}.{name}")

    def _tensor_class(self, name: str) -> type[_Nothing]:
        if name not in self._tensor_classes and len(self._tensor_classes) == _MAX_TENSOR_CLASSES:
            raise RefusedError(f"it names more than {_MAX_TENSOR_CLASSES} classes of {_TENSOR_PACKAGE}")
        return self._tensor_classes.setdefault(name, type(name, (_Nothing,), {}))

    def persistent_load(self, pid: Any) -> Storage:
        tag, storage, key, _location, elements, *view = pid
        if view and view[0] is not None:
            raise RefusedError("its storages are views of each other, as torch has not written since 0.4")
        plain = isinstance(storage, _Dtype) and type(key) in (str, int) and type(elements) is int
        if tag != "storage" or not plain or elements < 0:
            raise RefusedError(f"it refers to an unknown object, {reprlib.repr(tag)}")
        return Storage(str(key), storage.name, elements)

    def get_extension(self, code: int) -> NoReturn:
        raise RefusedError(f"it holds code, the copyreg extension {code}")

    def load_build(self) -> None:
        self.stack.pop()  # the state of an OrderedDict: `_metadata`, which no tensor needs

    dispatch[BUILD[0]] = load_build


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_rest: object
) -> NotedTensor:
    return _note(storage, storage.dtype, offset, shape, stride)


def _rebuild_typed_tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    dtype: _Dtype,
    *_rest: object,
) -> NotedTensor:
    return _note(storage, dtype.name, offset, shape, stride)


def _note(storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> NotedTensor:
    if len(shape) > MAX_RANK:
        raise RefusedError(f"a tensor has {len(shape)} axes, over the bound of {MAX_RANK}")
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise RefusedError(f"a tensor has the impossible shape {reprlib.repr(shape)} or stride {reprlib.repr(stride)}")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    claimed, held = tensor_nbytes(dtype, shape), tensor_nbytes(storage.dtype, (storage.elements,))
    if claimed and (claimed > held or tensor_nbytes(dtype, (last + 1,)) > held):
        raise RefusedError(f"a tensor of shape {reprlib.repr(shape)} claims {claimed} bytes, its storage has {held}")
    return NotedTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: NotedTensor, *_rest: object) -> NotedTensor:
    return tensor


def _rebuild_wrapped(kind: type, dtype: _Dtype, shape: tuple[int, ...], *_rest: object) -> WrappedTensor:
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise RefusedError(f"a tensor has the impossible shape {reprlib.repr(shape)}")
    return WrappedTensor(kind.__name__, dtype.name, tuple(shape))


def _rebuild_by(rebuild: Callable[..., Any], _kind: object, arguments: tuple[Any, ...], *_rest: object) -> Any:
    known = rebuild in (_rebuild_tensor, _rebuild_typed_tensor, _rebuild_wrapped)
    parts = [one for one in (arguments, *arguments[:MAX_ARGUMENTS]) if isinstance(one, (list, tuple))]
    if not known or any(len(one) > MAX_ARGUMENTS for one in parts):
        raise RefusedError("it rebuilds a tensor in a way that torch has none of")
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
