"""A model fetched by its id: what `lading fetch` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.model_config import model_place, require_matches
from lading.hub.repository import Repository, check_patterns, setting, skips_download
from lading.hub.selection import wanted_files
from lading.hub.source import open_source
from lading.hub.transfers import Watcher, fetch_files, jobs_in_folder


@dataclass(frozen=True)
class Fetched:
    """What is there after a fetch.

    Attributes:
        names: the files that were asked for, in the repository's order.
        nbytes: of all of them, those that were there before included.
    """

    folder: Path
    names: tuple[str, ...]
    nbytes: int


def fetch_model(
    model_id: str,
    patterns: list[str] | None = None,
    source: str | None = None,
    to: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    watcher: Watcher | None = None,
) -> Fetched:
    """Fetch a model, or what is missing of it.

    Args:
        patterns: names, globs and folders; none for what a pipeline of this model uses, or for all files where the
            model is no pipeline.
        to: the folder for the files. By default it is the standard cache for models of Hugging Face, from which
            pipelines load by their id, and `./models/<model_id>` for those of ModelScope.

    Raises:
        DownloadError: the hub could not give it, or remote requests are turned off.
    """
    check_patterns(patterns or [])
    if skips_download():
        raise DownloadError(
            f"{model_id}: remote requests are turned off: unset HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD to fetch it"
        )
    hub = open_source(source)
    repository = hub.repository(model_id, revision)
    names = require_matches(repository, patterns) if patterns else _usual_names(repository, variant)
    files = repository.named(names)
    if to is None and hub.name == "huggingface":
        from lading.hub.cache import fetch_into_cache
        from lading.hub.huggingface import HuggingFace

        assert isinstance(hub, HuggingFace)
        folder = fetch_into_cache(hub, repository, files, watcher)
    else:
        folder = to if to is not None else model_place(setting("MODEL_BASE_PATH") or "./models", model_id)
        fetch_files(hub, repository, jobs_in_folder(repository, files, folder), watcher or Watcher())
    return Fetched(folder, tuple(file.name for file in files), sum(file.nbytes for file in files))


def _usual_names(repository: Repository, variant: str | None) -> list[str]:
    if "model_index.json" in repository.names:
        return wanted_files(repository.names, None, variant)
    return require_matches(repository, [""])
