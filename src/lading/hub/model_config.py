"""`ModelConfig`: where one checkpoint comes from and where its weights live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.checkpoint.files import natural_key
from lading.errors import DownloadError
from lading.hub.local import files_below, model_place, or_offline
from lading.hub.repository import (
    Repository,
    check_patterns,
    is_literal,
    matching,
    setting,
    skips_download,
    what_is_there,
)
from lading.hub.source import Source, open_source
from lading.hub.transfers import Watcher, fetch_files, jobs_in_folder

if TYPE_CHECKING:
    import torch

_STATES = ("offload", "onload", "preparing", "computation")


@dataclass
class ModelConfig:
    """Where one checkpoint comes from, and where its weights live while it is not, or is, computing.

    Attributes:
        path: local file, folder, or list of shards. Given: no network. Otherwise filled by `download_if_necessary`.
        model_id: the id of a model on a hub.
        origin_file_pattern: which of its files: a name, a glob, a folder with a trailing "/", a list of these, or
            empty for all. A folder fills `path` with the folder itself, as tokenizers want it.
        download_source: "huggingface" (the default) or "modelscope"; `LADING_DOWNLOAD_SOURCE` or
            `DIFFSYNTH_DOWNLOAD_SOURCE` set it from outside.
        local_model_path: files go to `<local_model_path>/<model_id>`; by default `./models`, moved by
            `LADING_MODEL_BASE_PATH` or `DIFFSYNTH_MODEL_BASE_PATH`.
        skip_download: True makes no remote request; `LADING_SKIP_DOWNLOAD` or `DIFFSYNTH_SKIP_DOWNLOAD` likewise.

    >>> import lading
    >>> config = lading.ModelConfig(path=str(lading.shipped_model() / "vae" / "diffusion_pytorch_model.safetensors"))
    >>> config.download_if_necessary()
    >>> Path(config.path).name
    'diffusion_pytorch_model.safetensors'
    """

    path: str | list[str] | None = None
    model_id: str | None = None
    origin_file_pattern: str | list[str] | None = None
    download_source: str | None = None
    local_model_path: str | None = None
    skip_download: bool | None = None
    offload_device: str | torch.device | None = None
    offload_dtype: torch.dtype | str | None = None
    onload_device: str | torch.device | None = None
    onload_dtype: torch.dtype | str | None = None
    preparing_device: str | torch.device | None = None
    preparing_dtype: torch.dtype | str | None = None
    computation_device: str | torch.device | None = None
    computation_dtype: torch.dtype | str | None = None

    def download_if_necessary(self) -> None:
        """Fetch the files that are missing and fill `path`: a string for one file or folder, a sorted list for several.

        Raises:
            DownloadError: neither path nor model_id is given, the hub could not give the files, or none matches.
        """
        if self.path is not None:
            if isinstance(self.path, list) and len(self.path) == 1:
                self.path = self.path[0]
            return
        if self.model_id is None:
            raise DownloadError("ModelConfig names nothing: give path=, or model_id= with origin_file_pattern=")
        if self.local_model_path is None:
            self.local_model_path = setting("MODEL_BASE_PATH") or "./models"
        patterns = self._patterns()
        folder = model_place(self.local_model_path, self.model_id)
        missing = not all(is_literal(pattern) and (folder / pattern).is_file() for pattern in patterns)
        if missing and not (skips_download() if self.skip_download is None else self.skip_download):
            with or_offline(self.model_id, folder):
                fetch_matching(open_source(self.download_source), self.model_id, patterns, folder)
        self.path = _local_path(folder, patterns, self.origin_file_pattern)

    def vram_config(self) -> dict[str, Any]:
        """Return the eight offload keys: device and dtype for each of the four states.

        >>> sorted(ModelConfig(path="x", onload_device="cpu").vram_config())[:2]
        ['computation_device', 'computation_dtype']
        """
        return {
            f"{state}_{what}": getattr(self, f"{state}_{what}") for state in _STATES for what in ("device", "dtype")
        }

    def _patterns(self) -> list[str]:
        given = self.origin_file_pattern
        patterns = given if isinstance(given, list) else [given or ""]
        check_patterns(patterns)
        return ["" if pattern == "./" else pattern for pattern in patterns] or [""]


def fetch_matching(
    source: Source,
    model_id: str,
    patterns: list[str],
    folder: Path,
    revision: str | None = None,
    watcher: Watcher | None = None,
) -> Repository:
    """Fetch the files of a model that match, and are not there, into a plain folder.

    Raises:
        DownloadError: the hub could not give them, or none matches.
    """
    repository = source.repository(model_id, revision)
    files = repository.named(require_matches(repository, patterns))
    fetch_files(source, repository, jobs_in_folder(repository, files, folder), watcher or Watcher())
    return repository


def require_matches(repository: Repository, patterns: list[str]) -> list[str]:
    """Return the names in a repository that match.

    Raises:
        DownloadError: none does.
    """
    names = matching(repository.names, patterns)
    if not names:
        wanted = ", ".join(map(repr, patterns))
        raise DownloadError(
            f"{repository.model_id}: no file on the hub matches {wanted}: "
            f"{what_is_there(repository.names, patterns)}: correct the pattern"
        )
    return names


def _local_path(folder: Path, patterns: list[str], given: str | list[str] | None) -> str | list[str]:
    """Return what matches in a local folder: itself for no pattern, a folder for "name/", files for the others."""
    held = files_below(folder)
    found = set(matching(held, [pattern for pattern in patterns if pattern and not pattern.endswith("/")]))
    found |= {
        pattern.rstrip("/") for pattern in patterns if not pattern or pattern.endswith("/") if matching(held, [pattern])
    }
    if not found:
        raise DownloadError(
            f"{folder}: no file matches {given!r}: {what_is_there(held, patterns)}: correct the pattern, "
            "or let it be fetched (skip_download=False)"
        )
    matches = [str(folder / name) for name in sorted(found, key=natural_key)]
    return matches[0] if len(matches) == 1 else matches
