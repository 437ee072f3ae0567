"""From what a user names to the files that hold the weights.

A path may be a file, a list of paths, a folder, a glob or an index (`*.index.json`). Files that an index or a folder
names must lie inside that folder; only the blobs of the Hugging Face cache, where every file is a link, may not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lading.errors import CheckpointError

CheckpointPath: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
"""One path, or several whose tensors are merged in order."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
"""The names that diffusers, transformers and PEFT give to weights, without variant, shard number and suffix."""

MAX_INDEX_BYTES = 100_000_000

_SHARD = r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>(\.[^.]+)*)"


@dataclass(frozen=True)
class FileList:
    """The files of one checkpoint, in the order in which their tensors are merged.

    Attributes:
        owners: tensor name -> file, as an index states it; empty without an index.
        missing: names of shards that are not there; only where that was allowed.
    """

    files: tuple[Path, ...]
    owners: dict[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def natural_key(path: str | os.PathLike[str]) -> list[tuple[int, int, str]]:
    """Sort key by which "part-2" comes before "part-10".

    >>> sorted(["part-10", "part-2", "part"], key=natural_key)
    ['part', 'part-2', 'part-10']
    """
    parts = re.split(r"(\d+)", os.fspath(path))
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts]


def stem_of(file: Path) -> str:
    """Return the name of a checkpoint by that of one of its files, as safetensors files of it are called.

    >>> stem_of(Path("diffusion_pytorch_model-00001-of-00003.fp16.safetensors")), stem_of(Path("pytorch_model.bin"))
    ('diffusion_pytorch_model.fp16', 'model')
    """
    head = file.name.removesuffix(file.suffix)
    shard = re.fullmatch(_SHARD, head)
    head = shard["stem"] + shard["rest"] if shard is not None else head
    return "model" if head == "pytorch_model" else head


def find_files(path: CheckpointPath, complete: bool = True) -> FileList:
    """Return the files that a path stands for.

    Args:
        complete: False allows for missing shards and names them.

    Raises:
        CheckpointError: nothing is there, it is ambiguous, shards are missing, or a file lies outside its folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        lists = [find_files(part, complete) for part in path]
        if not lists:
            raise CheckpointError("an empty list of paths names no checkpoint: name at least one file")
        owners = {name: file for part in lists for name, file in part.owners.items()}
        files = tuple(file for part in lists for file in part.files)
        told = {name for part in lists if part.owners for name in part.missing}
        absent = told | {name for _, _, names in absent_shards(files) for name in names}
        return FileList(files, owners, () if complete else tuple(sorted(absent)))
    text = os.fspath(path)
    if "\0" in text:
        raise CheckpointError(f"{text!r} is not a path: it holds a NUL character")
    try:
        return _find_one(text, complete)
    except OSError as error:
        raise CheckpointError(f"{text}: cannot be read: {error.strerror}") from None


def _find_one(text: str, complete: bool) -> FileList:
    place = Path(text)
    if place.is_dir():
        return find_in_folder(place, complete=complete)
    if place.is_file():
        return read_index(place, complete) if place.name.endswith(".json") else _listed((place,), complete)
    if any(sign in text for sign in "*?["):
        import glob  # few paths are patterns

        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True), key=natural_key)]
        files = tuple(match for match in matches if match.is_file())
        if not files:
            raise CheckpointError(f"{text}: no file matches this pattern{_what_is_there(place.parent)}")
        if complete:
            _require_all_shards(files)
        return _listed(files, complete)
    if place.exists():
        raise CheckpointError(f"{text}: neither a file nor a folder: name a checkpoint")
    raise CheckpointError(f"{text}: there is no such file or folder{_what_is_there(place.parent)}")


def _listed(files: tuple[Path, ...], complete: bool) -> FileList:
    """A list without an index: only the numbers in the files' names tell what is missing."""
    missing = () if complete else tuple(name for _, _, names in absent_shards(files) for name in names)
    return FileList(files, missing=missing)


def find_in_folder(
    folder: Path, stem: str | None = None, variant: str | None = None, complete: bool = True
) -> FileList:
    """Return the weights in a folder: an index before single files, safetensors before other formats.

    Args:
        folder: a component's folder; its subfolders are not searched.
        stem: only files of this name, such as "diffusion_pytorch_model".
        variant: only files of this variant, such as "fp16" in "model.fp16.safetensors".
        complete: False allows for missing shards and names them.

    Raises:
        CheckpointError: no weights, or several that do not belong together.
    """
    weights = [file for file in folder.iterdir() if file.is_file() or file.is_symlink()]
    for index_suffix, suffixes in (
        (".safetensors.index", (".safetensors",)),
        (".bin.index", tuple(suffix for suffix in WEIGHT_SUFFIXES if suffix != ".safetensors")),
    ):
        indices = [file for file in weights if _is_index(file.name, index_suffix, stem, variant)]
        if len(indices) == 1:
            return read_index(indices[0], complete)
        singles = [file for file in weights if _is_weight(file.name, suffixes, stem, variant)]
        if singles:
            return _one_checkpoint(folder, singles, complete)
        if indices:
            raise _ambiguous(folder, indices)
    wanted = "".join(
        f" {word} {value!r}" for word, value in (("named", stem), ("of variant", variant)) if value is not None
    )
    if (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder}: a pipeline, not a checkpoint: name one of its components' folders")
    raise CheckpointError(f"{folder}: there are no weights{wanted} in this folder{_what_is_there(folder)}")


def read_index(index: Path, complete: bool = True) -> FileList:
    """Return the shards that a `*.index.json` names.

    Args:
        complete: False allows for missing shards and names them; one at least must be there.

    Raises:
        CheckpointError: it is not an index, or a shard is missing or lies outside the index's folder.
    """
    nbytes = index.stat().st_size
    if nbytes > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{index}: {nbytes} bytes are too many for a checkpoint's index, whose bound is {MAX_INDEX_BYTES}"
        )
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: not valid JSON ({error}): fetch the index again") from None
    weight_map = weight_map_of(content, index)
    shards = {name: _inside(index.parent, name, index) for name in sorted(set(weight_map.values()), key=natural_key)}
    missing = [name for name, file in shards.items() if not file.is_file()]
    if missing and (complete or len(missing) == len(shards)):
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}: fetch them"
        )
    present = {name: file for name, file in shards.items() if name not in missing}
    owners = {name: present[shard] for name, shard in weight_map.items() if shard in present}
    return FileList(tuple(present.values()), owners, tuple(missing))


def weight_map_of(index: Any, file: Path) -> dict[str, str]:
    """Return which file holds each tensor, as the content of an index says.

    Raises:
        CheckpointError: it is no index.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointError(f"{file}: not a checkpoint's index: it has no weight_map of tensor names to files")
    return weight_map


def _inside(folder: Path, name: str, named_by: Path) -> Path:
    """Return `folder / name` if that file, links followed, is in the folder."""
    unsafe = not name or "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts
    if unsafe or not _contained(folder, folder / name):
        raise CheckpointError(
            f"{named_by}: names {name!r}, outside its folder: refused. If you trust that file, name it directly"
        )
    return folder / name


def _contained(folder: Path, file: Path) -> bool:
    target, home = file.resolve(), folder.resolve()
    if target.is_relative_to(home):
        return True
    # The Hugging Face cache: <repo>/snapshots/<revision>/... links to <repo>/blobs/<hash>.
    snapshots = next((parent for parent in (home, *home.parents) if parent.name == "snapshots"), None)
    return snapshots is not None and target.parent == snapshots.parent / "blobs"


def _is_index(name: str, suffix: str, stem: str | None, variant: str | None) -> bool:
    """`model.safetensors.index.json`; a variant stands before ".json", as diffusers and transformers write it."""
    if not name.endswith(".json"):
        return False
    head, found, tail = name.removesuffix(".json").partition(suffix)
    plain = bool(found) and tail == (f".{variant}" if variant else "")
    return plain and (head == stem if stem else True)


def _is_weight(name: str, suffixes: tuple[str, ...], stem: str | None, variant: str | None) -> bool:
    if not name.endswith(suffixes):
        return False
    if stem is None and variant is None:
        return True
    head = name[: name.rindex(".")]
    shard = re.fullmatch(_SHARD, head)
    if shard is not None:
        head = shard["stem"] + shard["rest"]
    wanted = f"{stem or ''}{f'.{variant}' if variant else ''}"
    return head == wanted if stem else head.endswith(wanted)


def _one_checkpoint(folder: Path, files: list[Path], complete: bool) -> FileList:
    if len(files) > 1:
        named = [file for file in files if file.name[: file.name.rindex(".")] in WEIGHT_STEMS]
        files = named if len(named) == 1 else files
    shards = [re.fullmatch(_SHARD, file.name) for file in files]
    families = {(shard["stem"], shard["count"], shard["rest"]) if shard else None for shard in shards}
    if len(files) > 1 and (None in families or len(families) > 1):
        raise _ambiguous(folder, files)
    chosen = tuple(
        _inside(folder, file.name, folder) for file in sorted(files, key=lambda file: natural_key(file.name))
    )
    if complete:
        _require_all_shards(chosen)
    return _listed(chosen, complete)


def _require_all_shards(files: tuple[Path, ...]) -> None:
    for folder, count, names in absent_shards(files):
        missing = ", ".join(names)
        raise CheckpointError(f"{folder}: {len(names)} of {count} shards are missing: {missing}: fetch them")


def absent_shards(files: Iterable[Path]) -> list[tuple[Path, int, list[str]]]:
    """What the numbers in shards' names tell: for each family its folder, how many it has, and which are not there."""
    present: dict[tuple[Path, str, str, int], set[int]] = {}
    for file in files:
        shard = re.fullmatch(_SHARD, file.name)
        if shard is not None:
            family = (file.parent, shard["stem"], shard["rest"], int(shard["count"]))
            present.setdefault(family, set()).add(int(shard["number"]))
    absent = []
    for (folder, stem, rest, count), numbers in present.items():
        missing = [number for number in range(1, min(count, 1000) + 1) if number not in numbers]
        if missing:
            absent.append((folder, count, [f"{stem}-{number:05}-of-{count:05}{rest}" for number in missing]))
    return absent


def _ambiguous(folder: Path, files: list[Path]) -> CheckpointError:
    names = ", ".join(sorted((file.name for file in files), key=natural_key))
    return CheckpointError(f"{folder}: {len(files)} checkpoints are in this folder: name one of {names}")


def _what_is_there(folder: Path) -> str:
    """The end of an error message: what a user may have meant."""
    if not folder.is_dir():
        return f", nor the folder {folder}"
    names = sorted((entry.name for entry in folder.iterdir()), key=natural_key)
    return f": {folder} holds {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else ": it is empty"
