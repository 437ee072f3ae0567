"""What a model on a hub holds, read from its configs and headers alone: kilobytes of gigabytes."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lading.checkpoint.files import absent_shards, natural_key, stem_of, weight_map_of
from lading.checkpoint.header import MAX_HEADER_BYTES, FileInventory, FileStamp, parse_header
from lading.checkpoint.inventory import Checkpoint, merge_inventories
from lading.errors import CheckpointError, DownloadError
from lading.hub.local import or_offline, usual_folder
from lading.hub.repository import RemoteFile, Repository, is_model_id, is_safe_name, skips_download, what_is_there
from lading.hub.selection import is_weight, wanted_weights
from lading.hub.source import Source, open_source

_FIRST_BYTES = 1 << 16
"""What the first request for a header asks for: most headers are shorter."""

_MAX_CONFIG_BYTES = 16_000_000
_HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class _Group:
    """The files of one checkpoint, which of them each tensor is in, and what is missing, as in `FileList`."""

    files: tuple[RemoteFile, ...]
    owners: dict[str, Path]
    missing: tuple[str, ...]

    @property
    def home(self) -> tuple[str, str]:
        return _home(self.files[0])


@dataclass(frozen=True)
class RemoteModel:
    """A model on a hub whose files stay there.

    Attributes:
        variant: such as "fp16": of a folder that has such weights, they count.
    """

    source: Source
    repository: Repository
    variant: str | None = None

    @property
    def is_pipeline(self) -> bool:
        """Whether it is in the diffusers layout."""
        return "model_index.json" in self.repository.names

    def config(self, name: str) -> dict[str, Any]:
        """Read a JSON config, such as "model_index.json" or "unet/config.json".

        Raises:
            DownloadError: it is not there, or not a JSON object.
        """
        file = self._file(name)
        where = f"{self.repository.model_id}: {name}"
        if file.nbytes > _MAX_CONFIG_BYTES:
            raise DownloadError(f"{where}: {file.nbytes} bytes are too many for a config: name another file")
        try:
            content = json.loads(self.source.read(self.repository, file, 0, file.nbytes))
        except (ValueError, RecursionError) as error:
            raise DownloadError(f"{where}: not valid JSON ({error}): tell the model's authors") from None
        if not isinstance(content, dict):
            raise DownloadError(f"{where}: not a JSON object: tell the model's authors")
        return content

    def checkpoints(self, inside: str = "") -> dict[str, Checkpoint]:
        """Read the headers of the safetensors files, those of one checkpoint together.

        Args:
            inside: a folder or a file of the repository; empty for all. The top of a pipeline holds none of its
                components, so that only its folders count.

        Returns:
            Checkpoints by their folder, or by folder and name where a folder holds several. Shards that an index, or
            the numbers in names, tell of and the hub does not have are in `.missing`.

        Raises:
            DownloadError: nothing there is safetensors, or the hub could not give it.
            CheckpointError: a header breaks the format.
        """
        groups = self._groups(inside.strip("/"))
        files = [file for group in groups.values() for file in group.files]
        with ThreadPoolExecutor(max_workers=_HEADERS_AT_ONCE, thread_name_prefix="lading-header") as pool:
            inventories = dict(zip(files, pool.map(self._inventory, files), strict=True))
        return {
            name: merge_inventories((inventories[file] for file in group.files), group.owners, group.missing)
            for name, group in groups.items()
        }

    def _groups(self, inside: str) -> dict[str, _Group]:
        """What belongs together: what an index names, and of the files of other names those of one name."""
        chosen = self._chosen(inside)
        indexed = [self._indexed(name) for name in chosen if name.endswith(".json")]
        groups = {group.home: group for group in indexed}
        loose: dict[tuple[str, str], list[RemoteFile]] = {}
        for file in sorted(self.repository.named(chosen), key=lambda file: natural_key(file.name)):
            if not file.name.endswith(".json"):
                loose.setdefault(_home(file), []).append(file)
        for home, files in loose.items():
            absent = absent_shards(Path(file.name) for file in files)
            missing = tuple(name for _, _, names in absent for name in names)
            groups.setdefault(home, _Group(tuple(files), {}, missing))  # an index counts before what lies beside it
        folders = Counter(folder for folder, _ in groups)
        return {
            (folder or stem) if folders[folder] == 1 else f"{folder}/{stem}".lstrip("/"): group
            for (folder, stem), group in groups.items()
        }

    def _chosen(self, inside: str) -> list[str]:
        """The safetensors files and their indices that are meant."""
        names = self.repository.names
        if inside in names:
            chosen = [inside]
        else:
            below = [name for name in names if not inside or name.startswith(f"{inside}/")]
            folders: dict[str, list[str]] = {}
            for name in below:
                folder = name.rpartition("/")[0]
                if folder or inside or not self.is_pipeline:
                    folders.setdefault(folder, []).append(name)
            chosen = [name for held in folders.values() for name in wanted_weights(held, self.variant)]
        weights = [name for name in chosen if is_weight(name)]
        safe = [name for name in weights if name.endswith(".safetensors") or ".safetensors.index." in name]
        if safe:
            return safe
        where = f"{self.repository.model_id}{f'/{inside}' if inside else ''}"
        if weights:
            raise DownloadError(
                f"{where}: {', '.join(weights[:5])} cannot be read in parts as safetensors can: "
                "fetch it (`lading fetch`) and inspect what arrived"
            )
        raise DownloadError(f"{where}: no weights there: {what_is_there(names, [inside])}: name one of its folders")

    def _indexed(self, name: str) -> _Group:
        """The shards that an index names; those that the hub does not have are missing."""
        place = Path(self.repository.model_id, name)
        weight_map = weight_map_of(self.config(name), place)
        folder = name.rpartition("/")[0]
        shards = sorted(set(weight_map.values()), key=natural_key)
        unsafe = next((shard for shard in shards if not is_safe_name(shard)), None)
        if unsafe is not None:
            raise CheckpointError(f"{place}: names {unsafe!r}, outside its folder: refused; tell the model's authors")
        files = {file.name: file for file in self.repository.files}
        places = {shard: f"{folder}/{shard}".lstrip("/") for shard in shards}
        missing = tuple(shard for shard in shards if places[shard] not in files)
        if len(missing) == len(shards):
            raise CheckpointError(f"{place}: none of its {len(shards)} shards is there: tell the model's authors")
        owners = {
            tensor: Path(self.repository.model_id, places[shard])
            for tensor, shard in weight_map.items()
            if shard not in missing
        }
        return _Group(tuple(files[places[shard]] for shard in shards if shard not in missing), owners, missing)

    def _inventory(self, file: RemoteFile) -> FileInventory:
        place = Path(self.repository.model_id, file.name)
        if file.nbytes < 8:
            raise CheckpointError(f"{place}: {file.nbytes} bytes are too few for a checkpoint: tell its authors")
        start = self.source.read(self.repository, file, 0, min(_FIRST_BYTES, file.nbytes))
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES or length > file.nbytes - 8:
            raise CheckpointError(
                f"{place}: the header claims {length} bytes, the file has {file.nbytes} and the bound is "
                f"{MAX_HEADER_BYTES}: not a safetensors file"
            )
        end = 8 + length
        header = start[8:end] + self.source.read(self.repository, file, min(len(start), end), end)
        tensors, metadata = parse_header(header, place, file.nbytes - end)
        layout = {name: info.shape for name, info in tensors.items()}
        return FileInventory(place, FileStamp(0, 0, file.nbytes, 0), "safetensors", tensors, metadata, layout)

    def _file(self, name: str) -> RemoteFile:
        for file in self.repository.files:
            if file.name == name:
                return file
        raise DownloadError(
            f"{self.repository.model_id}: there is no {name}: {what_is_there(self.repository.names, [name])}: "
            "name a file that is there"
        )


def _home(file: RemoteFile) -> tuple[str, str]:
    """The folder of a checkpoint and its name there, by one of its files."""
    return file.name.rpartition("/")[0], stem_of(Path(file.name))


def open_remote(
    model_id: str,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    source: str | None = None,
) -> RemoteModel:
    """Look at a model on a hub without fetching it.

    Args:
        source: "huggingface" or "modelscope"; None for the one that `LADING_DOWNLOAD_SOURCE` names, or Hugging Face.

    Raises:
        DownloadError: the hub does not have it or does not show it, or remote requests are turned off.
    """
    if skips_download():
        raise DownloadError(
            f"{model_id}: remote requests are turned off: unset HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD to look at it"
        )
    hub = open_source(source, token)
    with or_offline(model_id, usual_folder(model_id, revision, source)):
        return RemoteModel(hub, hub.repository(model_id, revision), variant)


def remote_checkpoints(path: str, source: str | None = None) -> dict[str, Checkpoint] | None:
    """Read the headers of what "org/name", or "org/name/folder", means on the hub.

    Returns:
        Checkpoints by name; None where the text is a local path, as it is when its first folder is there.

    Raises:
        DownloadError: see `open_remote` and `RemoteModel.checkpoints`.
    """
    parts = path.rstrip("/").split("/")
    model_id = "/".join(parts[:2])
    if Path(path).exists() or Path(parts[0]).exists() or not is_model_id(model_id):
        return None
    return open_remote(model_id, source=source).checkpoints("/".join(parts[2:]))
