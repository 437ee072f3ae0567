"""Checkpoints rewritten as safetensors: other dtype, other shards, out of torch files; in constant memory.

Every piece of the result has its place before the first is read, so the reading threads read, cast and write pieces in
any order. The result is written beside the target, read again from the disk and compared, and only then given its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lading.checkpoint.arena import Arena, Scratch, block_ceiling, block_floor
from lading.checkpoint.files import CheckpointPath, stem_of
from lading.checkpoint.header import SAFETENSORS_DTYPES, TensorInfo
from lading.checkpoint.inventory import Checkpoint, open_checkpoint, read_inventory
from lading.checkpoint.quantised import as_the_network_has_it
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import PIECE_BYTES, OnBytes, Reading
from lading.errors import CheckpointError
from lading.sizes import DTYPE_BITS, dtype_name, format_size, parse_size, tensor_nbytes

if TYPE_CHECKING:
    import torch

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class _Shard:
    """One file of the result.

    Attributes:
        places: tensor name -> (dtype, offset in the file, bytes).
    """

    name: str
    header: bytes
    places: Mapping[str, tuple[str, int, int]]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(nbytes for _, _, nbytes in self.places.values())


def convert_checkpoint(
    source: CheckpointPath | Checkpoint,
    target: str | os.PathLike[str],
    torch_dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    on_bytes: OnBytes | None = None,
) -> tuple[Path, ...]:
    """Write a checkpoint anew as safetensors and return the files of the result.

    The metadata stays, the tensors keep names, shapes and, without a cast, every bit; only GGUF's blocks are always
    decoded. With a cast, quantised weights are decoded, and what only told how is left out. A run that is stopped
    leaves the source as it was and no target.

    Args:
        source: a file, a list of files merged in order, a folder, a glob or an `index.json`, safetensors or torch; or
            such a checkpoint that is open.
        target: a file that ends in ".safetensors"; with `max_shard_size` a folder, for shards and their index.
        torch_dtype: floating-point tensors are cast to it; others keep theirs. None casts nothing.
        max_shard_size: such as "5GB". A tensor that is larger has a shard of its own.
        on_bytes: told of the source's bytes twice, as they are written and as they are compared, from several threads.

    Raises:
        CheckpointError: the source is no checkpoint or cannot be decoded, the target is there already, the disk is too
            small or fails, or what was written is not what is there to read.

    >>> import lading, tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "vae.safetensors"
    >>> [file.name for file in lading.convert_checkpoint(lading.shipped_model() / "vae", target, "bfloat16")]
    ['vae.safetensors']
    >>> lading.open_checkpoint(target).dtypes
    {'bfloat16': 184}
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    if torch_dtype is not None:
        checkpoint = as_the_network_has_it(checkpoint)
    target = Path(target)
    dtype = None if torch_dtype is None else dtype_name(str(torch_dtype))
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    _check_target(target, limit)
    shards = _lay_out(checkpoint, target, dtype, limit)
    _require_space(target.parent, sum(shard.nbytes for shard in shards))
    with _beside(target) as folder:
        writer = _Writer(checkpoint, shards, folder, on_bytes)
        writer.write()
        writer.compare()
        if limit is None:
            (folder / shards[0].name).rename(target)
            return (target,)
        names = [shard.name for shard in shards]
        if len(shards) > 1:
            names.append(_write_index(shards, folder))
        folder.rename(target)
    return tuple(target / name for name in names)


def _check_target(target: Path, limit: int | None) -> None:
    if limit is None and target.suffix != ".safetensors":
        raise CheckpointError(
            f'{target}: a target without shards is a file that ends in ".safetensors"; for a folder give a shard size'
        )
    if limit is not None and target.suffix == ".safetensors":
        raise CheckpointError(f"{target}: shards go into a folder: name one, without .safetensors")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: there is no folder {target.parent}: create it first")
    if target.exists() and (limit is None or not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already: choose another name, or remove it first")


def _lay_out(checkpoint: Checkpoint, target: Path, dtype: str | None, limit: int | None) -> list[_Shard]:
    """Give each tensor its shard and place: in the source's order, wide dtypes first so that all are aligned."""
    dtypes = {name: _dtype_of(info, dtype) for name, info in checkpoint.items()}
    groups: list[list[str]] = [[]]
    held = 0
    for name, info in checkpoint.items():
        nbytes = tensor_nbytes(dtypes[name], info.shape)
        if limit is not None and groups[-1] and held + nbytes > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += nbytes
    stem = stem_of(checkpoint.files[0])
    shards = []
    for number, group in enumerate(groups, 1):
        name = f"{stem}-{number:05}-of-{len(groups):05}" if len(groups) > 1 else stem
        name = target.name if limit is None else f"{name}.safetensors"
        shards.append(
            _lay_out_shard(name, {name: (dtypes[name], checkpoint[name].shape) for name in group}, checkpoint)
        )
    return shards


def _lay_out_shard(name: str, tensors: dict[str, tuple[str, tuple[int, ...]]], checkpoint: Checkpoint) -> _Shard:
    metadata = {"format": "pt", **checkpoint.metadata}  # transformers loads no file that does not state a format
    header: dict[str, object] = {"__metadata__": metadata}
    places: dict[str, tuple[str, int, int]] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensors[tensor][0]]):
        dtype, shape = tensors[tensor]
        nbytes = tensor_nbytes(dtype, shape)
        header[tensor] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [end, end + nbytes]}
        places[tensor] = (dtype, end, nbytes)
        end += nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    return _Shard(
        name,
        len(text).to_bytes(8, "little") + text,
        {tensor: (dtype, base + start, nbytes) for tensor, (dtype, start, nbytes) in places.items()},
    )


def _dtype_of(info: TensorInfo, wanted: str | None) -> str:
    dtype = wanted if wanted is not None and "float" in info.dtype else info.dtype
    if dtype not in _CODES:
        raise CheckpointError(f"{info.file}: safetensors has no dtype {dtype}: convert to another")
    return dtype


def _require_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise CheckpointError(f"{folder}: {format_size(nbytes)} are needed and {format_size(free)} are free: make room")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target, for this process alone; what is left in it goes at the end."""
    folder = target.parent / f".{target.name}.incomplete"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(f"{target}: another process is writing it: wait for that one") from None
        try:
            for left in folder.iterdir():  # by a run that was killed
                left.unlink()
            yield folder
        except OSError as error:
            raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from None
        finally:
            if folder.is_dir():
                shutil.rmtree(folder)
    finally:
        os.close(lock)


@dataclass(frozen=True)
class _Piece:
    """A run of one tensor's bytes and where it goes.

    Attributes:
        start: offset of the first byte in the source file.
        end: offset one past the last.
        first: how many elements of the tensor come before it.
        dtype: of the result.
        shard: the name of the result's file.
        place: offset in that file.
    """

    info: TensorInfo
    start: int
    end: int
    first: int
    dtype: str
    shard: str
    place: int

    @property
    def elements(self) -> int:
        """How many it holds; a block at the end may have more than the tensor."""
        block, block_bytes = _block(self.info)
        return min((self.end - self.start) // block_bytes * block, prod(self.info.shape) - self.first)


def _pieces(name: str, checkpoint: Checkpoint, shard: _Shard) -> Iterator[_Piece]:
    info = checkpoint[name]
    dtype, place, _ = shard.places[name]
    block, block_bytes = _block(info)
    step = PIECE_BYTES // block_bytes * block_bytes if info.stride is None else info.end - info.start
    for start in range(info.start, info.end, step):
        first = (start - info.start) // block_bytes * block
        moved = first * DTYPE_BITS[dtype] // 8
        yield _Piece(info, start, min(start + step, info.end), first, dtype, shard.name, place + moved)


def _block(info: TensorInfo) -> tuple[int, int]:
    """Elements that take a whole number of bytes together, and how many bytes."""
    return (8, DTYPE_BITS[info.dtype]) if info.encoding is None else (info.encoding.block, info.encoding.block_bytes)


class _Writer:
    """Writes pieces, each with a checksum; its parts are used by several threads at once."""

    def __init__(self, checkpoint: Checkpoint, shards: list[_Shard], folder: Path, on_bytes: OnBytes | None) -> None:
        self._checkpoint = checkpoint
        self._shards = shards
        self._folder = folder
        self._on_bytes = on_bytes or (lambda _: None)
        self._scratch = Scratch(PIECE_BYTES)
        self._readers = {inventory.file: FileReader(inventory, use="once") for inventory in checkpoint.inventories}
        self._targets: dict[str, int] = {}
        self._sums: dict[tuple[str, int], tuple[int, int]] = {}

    def write(self) -> None:
        """Write all files, down to the disk."""
        try:
            for shard in self._shards:
                file = self._folder / shard.name
                self._targets[shard.name] = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                _write_all(self._targets[shard.name], memoryview(shard.header), 0)
            pieces = [
                piece
                for shard in self._shards
                for name in shard.places
                for piece in _pieces(name, self._checkpoint, shard)
            ]
            Reading([partial(self._copy, piece) for piece in pieces]).wait()
            for target in self._targets.values():
                os.fsync(target)
                os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the comparison reads the disk
        finally:
            for target in self._targets.values():
                os.close(target)
            for reader in self._readers.values():
                reader.close()

    def compare(self) -> None:
        """Read all files again and compare their checksums.

        Raises:
            CheckpointError: the disk gives back what was not written.
        """
        for shard in self._shards:
            inventory = read_inventory(self._folder / shard.name)
            reader = FileReader(inventory, use="once")
            places = sorted(place for name, place in self._sums if name == shard.name)
            stretches = pairwise([*places, inventory.stamp.nbytes])
            tasks = [partial(self._check, reader, shard.name, start, end) for start, end in stretches]
            Reading(tasks).wait()
            reader.close()

    def _copy(self, piece: _Piece) -> None:
        reader, info = self._readers[piece.info.file], piece.info
        first = block_floor(piece.start)
        with self._scratch.borrow() as arena:
            if info.stride is None:
                reader.fill(arena.view(0, block_ceiling(piece.end) - first), first)
                start, end = piece.start - first, piece.end - first
                if info.encoding is not None:
                    data = _decoded(arena, start, end, piece)
                else:
                    data = arena.view(start, end) if piece.dtype == info.dtype else _cast(arena, start, end, piece)
            else:
                data = _dense(reader.tensor(info), piece)
            _write_all(self._targets[piece.shard], data, piece.place)
            self._sums[piece.shard, piece.place] = zlib.crc32(data), piece.end - piece.start
        self._on_bytes(piece.end - piece.start)

    def _check(self, reader: FileReader, shard: str, start: int, end: int) -> None:
        found = 0
        with self._scratch.borrow() as arena:
            for offset in range(start, end, PIECE_BYTES):
                data = arena.view(0, min(PIECE_BYTES, end - offset))
                reader.fill(data, offset)
                found = zlib.crc32(data, found)
        written, nbytes = self._sums[shard, start]
        if found != written:
            raise CheckpointError(
                f"{self._folder / shard}: the disk gives back other bytes than were written from {start} on: "
                "nothing was kept; check the disk"
            )
        self._on_bytes(nbytes)


def _cast(arena: Arena, start: int, end: int, piece: _Piece) -> memoryview:
    import torch

    from lading.checkpoint.casting import copy_serially, stored_elements

    stored, wanted = getattr(torch, piece.info.dtype, None), getattr(torch, piece.dtype, None)
    if stored is None or wanted is None:
        raise CheckpointError(f"{piece.info.file}: this torch cannot cast {piece.info.dtype} to {piece.dtype}")
    source = stored_elements(arena, stored, start, end)
    target = torch.empty(source.shape, dtype=wanted)
    try:
        copy_serially(target, source)
    except RuntimeError as error:
        raise CheckpointError(f"{piece.info.file}: torch cannot cast its tensors: {error}") from None
    return target.view(torch.uint8).numpy().data


def _decoded(arena: Arena, start: int, end: int, piece: _Piece) -> memoryview:
    import torch

    from lading.checkpoint.casting import stored_bytes
    from lading.checkpoint.decoding import decode_into, decoder_of

    assert piece.info.encoding is not None
    target = torch.empty(piece.elements, dtype=getattr(torch, piece.dtype))
    stored = stored_bytes(arena, start, end)
    decode_into(target, stored, piece.info.encoding, piece.first, decoder_of(piece.info))
    return target.view(torch.uint8).numpy().data


def _dense(tensor: torch.Tensor, piece: _Piece) -> memoryview:
    """A tensor that a torch file holds in another than row-major order, in that order."""
    import torch

    dense = tensor.contiguous().to(getattr(torch, piece.dtype))
    return dense.view(-1).view(torch.uint8).numpy().data


def _write_all(target: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(target, data, offset)
        data, offset = data[count:], offset + count


def _write_index(shards: list[_Shard], folder: Path) -> str:
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", shards[0].name.removesuffix(".safetensors"))
    total = sum(nbytes for shard in shards for _, _, nbytes in shard.places.values())
    weight_map = {name: shard.name for shard in shards for name in shard.places}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    name = f"{stem}.safetensors.index.json"
    (folder / name).write_text(json.dumps(index, indent=2) + "\n")
    return name
