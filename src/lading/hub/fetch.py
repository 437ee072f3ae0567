"""A model fetched by its id: what `lading fetch` does, and `load_pipeline` for what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.local import or_offline, usual_folder
from lading.hub.model_config import require_matches
from lading.hub.remote import RemoteModel
from lading.hub.repository import Repository, check_patterns, skips_download
from lading.hub.selection import components_of, wanted_files
from lading.hub.source import Source, open_source
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
        to: the folder for the files. By default it is the standard cache for models of Hugging Face, and
            `./models/<model_id>` for those of ModelScope; from both, pipelines load by their id.

    Raises:
        DownloadError: the hub could not give it, or remote requests are turned off.
    """
    check_patterns(patterns or [])
    if skips_download():
        raise DownloadError(
            f"{model_id}: remote requests are turned off: unset HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD to fetch it"
        )
    if to is None:
        to = usual_folder(model_id, revision, source)
    with or_offline(model_id, to):
        hub = open_source(source)
        repository = hub.repository(model_id, revision)
        if patterns:
            names = require_matches(repository, patterns)
        else:
            names = pipeline_names(hub, repository, None, variant) or require_matches(repository, [""])
        folder = fetch_names(hub, repository, names, to, watcher)
    files = repository.named(names)
    return Fetched(folder, tuple(file.name for file in files), sum(file.nbytes for file in files))


def pipeline_names(
    hub: Source,
    repository: Repository,
    components: Iterable[str] | None,
    variant: str | None,
    subfolder: str | None = None,
) -> list[str]:
    """Return the files that a pipeline of a repository uses; none where it is no pipeline.

    Args:
        components: those needed; None for all that `model_index.json` names.
        variant: such as "fp16": these weights are chosen where a component has them.
        subfolder: where in the repository the pipeline lies.

    Raises:
        DownloadError: the hub could not give its index.
    """
    index = f"{subfolder.strip('/')}/model_index.json" if subfolder else "model_index.json"
    if index not in repository.names:
        return wanted_files(repository.names, components, variant, subfolder) if components is not None else []
    if components is None:
        components = components_of(RemoteModel(hub, repository).config(index))
    return wanted_files(repository.names, components, variant, subfolder)


def fetch_names(
    hub: Source, repository: Repository, names: list[str], to: Path | None, watcher: Watcher | None = None
) -> Path:
    """Fetch what is missing of these files into a folder, or for None into the standard cache; return where they are.

    Raises:
        DownloadError: the hub could not give them.
    """
    files = repository.named(names)
    if to is not None:
        fetch_files(hub, repository, jobs_in_folder(repository, files, to), watcher or Watcher())
        return to
    from lading.hub.cache import fetch_into_cache
    from lading.hub.huggingface import HuggingFace

    assert isinstance(hub, HuggingFace)
    return fetch_into_cache(hub, repository, files, watcher)
