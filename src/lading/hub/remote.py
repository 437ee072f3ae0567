"""What a model on the Hugging Face Hub holds, read from its configs and headers alone: kilobytes of gigabytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lading.checkpoint.files import natural_key, stem_of
from lading.checkpoint.header import MAX_HEADER_BYTES, FileInventory, FileStamp, parse_header
from lading.checkpoint.inventory import Checkpoint
from lading.errors import CheckpointError, DownloadError
from lading.hub.huggingface import HuggingFace
from lading.hub.repository import RemoteFile, Repository, is_model_id, skips_download, what_is_there
from lading.hub.selection import is_weight, wanted_weights

_FIRST_BYTES = 1 << 16
"""What the first request for a header asks for: most headers are shorter."""

_MAX_CONFIG_BYTES = 16_000_000
_HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class RemoteModel:
    """A model on the Hugging Face Hub whose files stay there.

    Attributes:
        variant: such as "fp16": of a folder that has such weights, they count.
    """

    source: HuggingFace
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
            Checkpoints by their folder, or by folder and name where a folder holds several.

        Raises:
            DownloadError: nothing there is safetensors, or the hub could not give it.
            CheckpointError: a header breaks the format.
        """
        groups = self._groups(inside.strip("/"))
        files = [file for group in groups.values() for file in group]
        with ThreadPoolExecutor(max_workers=_HEADERS_AT_ONCE, thread_name_prefix="lading-header") as pool:
            inventories = dict(zip(files, pool.map(self._inventory, files), strict=True))
        return {name: _merged(inventories[file] for file in group) for name, group in groups.items()}

    def _groups(self, inside: str) -> dict[str, list[RemoteFile]]:
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
        weights = [name for name in chosen if is_weight(name) and not name.endswith(".json")]
        safe = [name for name in weights if name.endswith(".safetensors")]
        if not safe:
            where = f"{self.repository.model_id}{f'/{inside}' if inside else ''}"
            if weights:
                raise DownloadError(
                    f"{where}: {', '.join(weights[:5])} cannot be read in parts as safetensors can: "
                    "fetch it (`lading fetch`) and inspect what arrived"
                )
            raise DownloadError(f"{where}: no weights there: {what_is_there(names, [inside])}: name one of its folders")
        groups: dict[tuple[str, str], list[RemoteFile]] = {}
        for file in sorted(self.repository.named(safe), key=lambda file: natural_key(file.name)):
            groups.setdefault((file.name.rpartition("/")[0], stem_of(Path(file.name))), []).append(file)
        alone = {folder for folder, _ in groups if sum(other == folder for other, _ in groups) == 1}
        return {
            (folder or stem) if folder in alone else f"{folder}/{stem}".lstrip("/"): files
            for (folder, stem), files in groups.items()
        }

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


def open_remote(
    model_id: str, revision: str | None = None, variant: str | None = None, token: str | bool | None = None
) -> RemoteModel:
    """Look at a model on the Hugging Face Hub without fetching it.

    Raises:
        DownloadError: the hub does not have it or does not show it, or remote requests are turned off.
    """
    if skips_download():
        raise DownloadError(
            f"{model_id}: remote requests are turned off: unset HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD to look at it"
        )
    source = HuggingFace(token)
    return RemoteModel(source, source.repository(model_id, revision), variant)


def remote_checkpoints(path: str) -> dict[str, Checkpoint] | None:
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
    return open_remote(model_id).checkpoints("/".join(parts[2:]))


def _merged(inventories: Iterable[FileInventory]) -> Checkpoint:
    inventories = tuple(inventories)
    return Checkpoint(inventories, {name: info for held in inventories for name, info in held.tensors.items()})
