"""`ModelConfig`: where one checkpoint comes from and where its weights live."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.checkpoint.files import natural_key
from lading.errors import DownloadError

if TYPE_CHECKING:
    import torch

_STATES = ("offload", "onload", "preparing", "computation")
_SOURCES = ("huggingface", "modelscope")


@dataclass
class ModelConfig:
    """Where one checkpoint comes from, and where its weights live while it is not, or is, computing.

    Attributes:
        path: local file, folder, or list of shards. Given: no network. Otherwise filled by `download_if_necessary`.
        model_id: the id of a model on a hub.
        origin_file_pattern: which of its files: a name, a glob, a folder with a trailing "/", a list of these, or
            empty for all.
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
        """Fetch the files that are missing and fill `path`: a string for one file, a sorted list for several.

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
            self.local_model_path = _environment("MODEL_BASE_PATH") or "./models"
        folder = self._folder()
        if not self._skips_download():
            self._download(self.model_id, folder)
        self.path = self._local_path(folder)

    def vram_config(self) -> dict[str, Any]:
        """Return the eight offload keys: device and dtype for each of the four states.

        >>> sorted(ModelConfig(path="x", onload_device="cpu").vram_config())[:2]
        ['computation_device', 'computation_dtype']
        """
        return {
            f"{state}_{what}": getattr(self, f"{state}_{what}") for state in _STATES for what in ("device", "dtype")
        }

    def _folder(self) -> Path:
        assert self.local_model_path is not None
        assert self.model_id is not None
        base = Path(self.local_model_path)
        folder = base / self.model_id
        if not folder.resolve().is_relative_to(base.resolve()) or folder.resolve() == base.resolve():
            raise DownloadError(f"model_id={self.model_id!r} is not the id of a model: write it as org/name")
        return folder

    def _patterns(self) -> list[str]:
        given = self.origin_file_pattern
        patterns = given if isinstance(given, list) else [given or ""]
        for pattern in patterns:
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise DownloadError(f"origin_file_pattern={pattern!r} leaves the model's folder: name files inside it")
        return [
            "*" if pattern in ("", "./") else f"{pattern}*" if pattern.endswith("/") else pattern
            for pattern in patterns
        ]

    def _skips_download(self) -> bool:
        if self.skip_download is None:
            return (_environment("SKIP_DOWNLOAD") or "").lower() in ("1", "true", "yes", "on")
        return self.skip_download

    def _local_path(self, folder: Path) -> str | list[str]:
        if self.origin_file_pattern in (None, "", "./", []):
            matches = [str(folder)] if folder.is_dir() else []
        else:
            found = {
                file for pattern in self._patterns() for file in glob.glob(pattern, root_dir=folder, recursive=True)
            }
            matches = [str(folder / file) for file in sorted(found, key=natural_key)]
        if not matches:
            held = sorted(
                (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()), key=natural_key
            )
            there = f"it holds {', '.join(held[:20])}" if held else "nothing is there"
            raise DownloadError(
                f"{folder}: no file matches {self.origin_file_pattern!r}: {there}: correct the pattern, "
                "or let it be fetched (skip_download=False)"
            )
        return matches[0] if len(matches) == 1 else matches

    def _download(self, model_id: str, folder: Path) -> None:
        source = (self.download_source or _environment("DOWNLOAD_SOURCE") or _SOURCES[0]).lower()
        if source not in _SOURCES:
            raise DownloadError(f"download_source={source!r} is unknown: use one of {', '.join(_SOURCES)}")
        try:
            if source == "huggingface":
                from huggingface_hub import snapshot_download

                snapshot_download(model_id, local_dir=folder, allow_patterns=self._patterns())
            else:
                _download_from_modelscope(model_id, folder, self._patterns())
        except DownloadError:
            raise
        except Exception as error:  # noqa: BLE001 - both hubs raise many kinds, each with a readable message
            raise DownloadError(
                f"{model_id}: {source} could not give {self._patterns()}: {error}: check the id and the network, "
                "or set skip_download=True to use what is there"
            ) from None


def _download_from_modelscope(model_id: str, folder: Path, patterns: list[str]) -> None:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise DownloadError(f"{model_id}: modelscope is not installed: pip install 'lading[modelscope]'") from None
    snapshot_download(model_id, local_dir=str(folder), allow_file_pattern=patterns)


def _environment(name: str) -> str | None:
    return os.environ.get(f"LADING_{name}") or os.environ.get(f"DIFFSYNTH_{name}")
