"""DDUF: a pipeline in one file, a zip of a folder in the diffusers layout whose entries are stored as they are.

Weights are read where they lie in the file. The rest, configs and vocabularies, is small, and unpacked to a temporary
folder for the libraries that want files. Source: https://huggingface.co/docs/hub/dduf
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.checkpoint.files import natural_key, stem_of
from lading.checkpoint.header import MAX_HEADER_BYTES, FileInventory, FileStamp, TensorInfo, parse_header
from lading.checkpoint.inventory import Checkpoint
from lading.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import DDUFEntry

_MAX_ENTRIES = 10_000
_MAX_SMALL_BYTES = 256_000_000
"""Of one entry that is no weights; the largest vocabularies take some 35 MB."""

_unpacked: dict[Path, tuple[FileStamp, Path]] = {}
"""DDUF file -> its stamp, and the folder of what is unpacked of it, which goes with the process."""


def is_dduf(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a DDUF file."""
    return os.fspath(path).endswith(".dduf") and Path(path).is_file()


def read_dduf_inventory(file: Path) -> FileInventory:
    """Read what a DDUF file holds: the tensors of each component, after its name and a dot.

    Raises:
        CheckpointError: it is no DDUF file, or a damaged or unsafe one, or a component has several checkpoints.
    """
    stamp, entries = _entries(file)
    tensors: dict[str, TensorInfo] = {}
    layout: dict[str, Any] = {}
    configs: dict[str, dict[str, Any]] = {}
    for component in dict.fromkeys(name.partition("/")[0] for name in entries if "/" in name):
        held = _tensors(file, stamp, entries, component, None)
        if held:
            tensors |= {f"{component}.{name}": info for name, info in held.items()}
            layout[component] = {name: info.shape for name, info in held.items()}
        config = f"{component}/config.json"
        if config in entries:
            configs[f"{component}."] = _json(file, entries[config])
    return FileInventory(file, stamp, "DDUF", tensors, {}, layout, configs)


def unpack_dduf(file: Path) -> Path:
    """Return a folder with all of a DDUF file but its weights, in the diffusers layout; it stays as the process does.

    Raises:
        CheckpointError: it is no DDUF file, or a damaged or unsafe one.
    """
    file = file.resolve()
    stamp, entries = _entries(file)
    known = _unpacked.get(file)
    if known is not None and known[0] == stamp:
        return known[1]
    import shutil  # those who only ask whether a path is a DDUF file need none of these
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="lading-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, entry in entries.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if not name.endswith(".safetensors"):
            target.write_bytes(_read(file, entry.offset, entry.length))
    _unpacked[file] = stamp, folder
    return folder


def packed_weights(folder: Path, variant: str | None = None) -> Checkpoint | None:
    """Return a component's weights in the DDUF file whose unpacked folder holds the component's; None for others.

    Args:
        variant: such as "fp16".

    Raises:
        CheckpointError: the component has no such weights, or several, or the file has changed.
    """
    file = _packed_in(folder)
    if file is None:
        return None
    stamp, entries = _entries(file)
    tensors = _tensors(file, stamp, entries, folder.name, variant)
    if not tensors:
        wanted = f" of variant {variant!r}" if variant else ""
        raise CheckpointError(f"{file}: {folder.name!r} has no weights{wanted} in it: it holds {', '.join(entries)}")
    layout = {name: info.shape for name, info in tensors.items()}
    return Checkpoint((FileInventory(file, stamp, "DDUF", tensors, {}, layout),), tensors)


def packed_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a component's files in the DDUF file whose unpacked folder holds the component's."""
    file = _packed_in(folder)
    entries = {} if file is None else _entries(file)[1]
    return tuple(name.rpartition("/")[2] for name in entries if name.startswith(f"{folder.name}/"))


def _packed_in(folder: Path) -> Path | None:
    return next((file for file, (_, unpacked) in _unpacked.items() if unpacked == folder.parent), None)


def _entries(file: Path) -> tuple[FileStamp, dict[str, DDUFEntry]]:
    """Read the directory of a DDUF file; every entry lies in the file, under a name that is one of a component's."""
    import zipfile

    from huggingface_hub import read_dduf_file

    try:
        stamp = FileStamp.of(file.stat())
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
        for entry in listed:
            if not _is_safe(entry.filename):
                raise CheckpointError(f"{file}: names the entry {entry.filename!r}, outside its components: refused")
            if not entry.filename.endswith(".safetensors") and entry.file_size > _MAX_SMALL_BYTES:
                raise CheckpointError(
                    f"{file}: its entry {entry.filename!r} claims {entry.file_size} bytes, over the bound of "
                    f"{_MAX_SMALL_BYTES}: the file is damaged or hostile"
                )
        names = [entry.filename for entry in listed]
        if len(names) > _MAX_ENTRIES or len(set(names)) < len(names):
            raise CheckpointError(f"{file}: it has too many entries, or one twice: the file is damaged or hostile")
        entries = read_dduf_file(file)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged zip can fail in any way
        raise CheckpointError(f"{file}: not a readable DDUF file ({error}): fetch it again") from None
    for name, found in entries.items():
        if found.offset + found.length > stamp.nbytes:
            raise CheckpointError(f"{file}: its entry {name!r} ends past the file: it is truncated: fetch it again")
    return stamp, entries


def _is_safe(name: str) -> bool:
    component, separator, inside = name.rpartition("/")
    plain = inside not in ("", ".", "..") and not set(inside) & set("\\/:\0")
    return plain and (component.isidentifier() if separator else True)


def _tensors(
    file: Path, stamp: FileStamp, entries: Mapping[str, DDUFEntry], component: str, variant: str | None
) -> dict[str, TensorInfo]:
    """Read the headers of a component's weights, of all shards of one checkpoint."""
    stems: dict[str, list[str]] = {}
    for name in sorted(entries, key=natural_key):
        if name.startswith(f"{component}/") and name.endswith(".safetensors"):
            stems.setdefault(stem_of(Path(name)), []).append(name)
    if variant is not None:
        stems = {stem: names for stem, names in stems.items() if stem.endswith(f".{variant}")}
    chosen = [stem for stem in stems if "." not in stem] or list(stems)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{file}: {component!r} has {len(chosen)} checkpoints, {', '.join(chosen)}: name the variant"
        )
    tensors: dict[str, TensorInfo] = {}
    for stem in chosen:
        for name in stems[stem]:
            tensors |= _header(file, stamp, name, entries[name])
    return tensors


def _header(file: Path, stamp: FileStamp, name: str, entry: DDUFEntry) -> dict[str, TensorInfo]:
    """Read a safetensors header inside the file, where it is checked as that of a file of its own."""
    inside = file / name  # for messages
    length = int.from_bytes(_read(file, entry.offset, min(8, entry.length)), "little")
    if entry.length < 8 or length > min(MAX_HEADER_BYTES, entry.length - 8):
        raise CheckpointError(f"{inside}: not safetensors, or truncated: fetch the DDUF file again")
    header = _read(file, entry.offset + 8, length)
    if FileStamp.of(file.stat()) != stamp:
        raise CheckpointError(f"{file}: the file changed while its headers were read: load it again")
    tensors, _ = parse_header(header, inside, entry.length - 8 - length)
    return {
        tensor: replace(info, file=file, start=entry.offset + info.start, end=entry.offset + info.end)
        for tensor, info in tensors.items()
    }


def _json(file: Path, entry: DDUFEntry) -> dict[str, Any]:
    try:
        content = json.loads(_read(file, entry.offset, entry.length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {entry.filename} is not valid JSON ({error}): fetch it again") from None
    return content if isinstance(content, dict) else {}


def _read(file: Path, start: int, nbytes: int) -> bytes:
    with file.open("rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), nbytes, start)
    if len(data) != nbytes:
        raise CheckpointError(f"{file}: the file shrank while it was read: load it again when it is whole")
    return data
