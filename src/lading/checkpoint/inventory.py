"""What a checkpoint holds, known from its headers alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lading.checkpoint.files import CheckpointPath, find_files
from lading.checkpoint.header import FileInventory, TensorInfo, read_safetensors_header
from lading.errors import CheckpointError
from lading.sizes import format_size

_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclass(frozen=True)
class Checkpoint(Mapping[str, TensorInfo]):
    """A checkpoint's tensors by name, without their data.

    Attributes:
        inventories: what each file holds, in the order in which the files are merged.
        tensors: the merged tensors; of a name in several files the index decides, else the last file.
        missing: names of shards that are not there; only where that was allowed.
    """

    inventories: tuple[FileInventory, ...]
    tensors: Mapping[str, TensorInfo]
    missing: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order in which they are merged."""
        return tuple(inventory.file for inventory in self.inventories)

    @property
    def metadata(self) -> dict[str, str]:
        """The safetensors metadata of all files; of an entry in several files the last one counts."""
        return {key: value for inventory in self.inventories for key, value in inventory.metadata.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors there are of each dtype, the most frequent first."""
        return dict(Counter(info.dtype for info in self.tensors.values()).most_common())

    def hash(self, with_shape: bool = True) -> str:
        """Return the md5 that names this set of tensors; see `lading.hash_model_file`."""
        layout: dict[str, Any] = {}
        for inventory in self.inventories:
            layout.update(inventory.layout)
        return hash_layout(layout, with_shape)

    def __str__(self) -> str:
        dtypes = ", ".join(self.dtypes)
        files = f"{len(self.files)} files" if len(self.files) > 1 else self.files[0].name
        return f"{files}: {len(self)} tensors, {format_size(self.nbytes)}, {dtypes}"


def open_checkpoint(path: CheckpointPath, complete: bool = True) -> Checkpoint:
    """Read what a checkpoint holds: names, dtypes, shapes and places, no data.

    Args:
        path: a file, a list of files, a folder, a glob or an `index.json`.
        complete: False allows for missing shards; `.missing` then names them.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> checkpoint = lading.open_checkpoint(lading.shipped_model() / "vae")
    >>> checkpoint["decoder.conv_in.bias"].dtype
    'float16'
    """
    found = find_files(path, complete)
    return merge_inventories([read_inventory(file) for file in found.files], found.owners, found.missing)


def merge_inventories(
    inventories: Iterable[FileInventory], owners: Mapping[str, Path], missing: tuple[str, ...]
) -> Checkpoint:
    """Return the checkpoint of several files: of a name in more than one the owner counts, else the last file.

    Raises:
        CheckpointError: the owner of a tensor lacks it.
    """
    inventories = tuple(inventories)
    tensors: dict[str, TensorInfo] = {}
    for inventory in inventories:
        tensors.update(inventory.tensors)
    by_file = {inventory.file: inventory for inventory in inventories}
    for name, file in owners.items():
        info = by_file[file].tensors.get(name)
        if info is None:
            raise CheckpointError(f"{file}: the index places tensor {name!r} here, the file lacks it: fetch it again")
        tensors[name] = info
    return Checkpoint(inventories, tensors, missing)


def read_inventory(file: Path) -> FileInventory:
    """Read one file's inventory; its format is told from its first bytes, not from its name.

    Raises:
        CheckpointError: it is no checkpoint, or a damaged or unsafe one.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(256)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not start:
        raise CheckpointError(f"{file}: the file is empty: fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file}: a git-lfs pointer, not the weights: run `git lfs pull` or fetch the file again")
    if start.lstrip().lower().startswith(_MARKUP):
        raise CheckpointError(f"{file}: a web page, not weights: the download was answered by an error or a login page")
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{file}: a GGUF file: lading reads safetensors and torch files")
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        if file.suffix == ".safetensors":
            raise CheckpointError(f"{file}: a pickle under the name of a safetensors file: refused as unsafe")
        from lading.checkpoint.torch_file import read_torch_inventory  # safetensors files need no pickle, no zip

        return read_torch_inventory(file)
    return read_safetensors_header(file)


def hash_model_file(path: CheckpointPath, with_shape: bool = True) -> str:
    """Return the md5 that names a checkpoint's set of tensors, as DiffSynth-Studio computes it.

    It is the md5 of the sorted `name:d0_d1_...` and `name` of all tensors, joined by commas; dtypes, metadata and
    data do not count. Several files count as one merged file. No data is read and torch is not imported.

    Args:
        path: a file, a list of files, a folder, a glob or an `index.json`.
        with_shape: False leaves the shapes out.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> lading.hash_model_file(lading.shipped_model() / "vae") == lading.open_checkpoint(
    ...     lading.shipped_model() / "vae" / "diffusion_pytorch_model.safetensors"
    ... ).hash()
    True
    """
    return open_checkpoint(path).hash(with_shape)


def hash_layout(layout: Mapping[str, Any], with_shape: bool = True) -> str:
    """Return the hash of names and shapes; a mapping instead of a shape is a nested dict of them."""
    return hashlib.md5(_layout_text(layout, with_shape).encode(), usedforsecurity=False).hexdigest()


def _layout_text(layout: Mapping[str, Any], with_shape: bool) -> str:
    return ",".join(sorted(_layout_items(layout, with_shape)))


def _layout_items(layout: Mapping[str, Any], with_shape: bool) -> Iterable[str]:
    for name, value in layout.items():
        if isinstance(value, Mapping):
            yield f"{name}|{_layout_text(value, with_shape)}"
        else:
            yield name
            if with_shape:
                yield f"{name}:{'_'.join(map(str, value))}"
