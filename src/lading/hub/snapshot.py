"""From what a user calls a model to a local folder in the diffusers layout."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lading.errors import ComponentError, DownloadError
from lading.hub.local import or_offline, usual_folder
from lading.hub.repository import is_model_id, is_safe_name, skips_download, what_is_there
from lading.hub.source import open_source

SHIPPED = "shapes"
"""The name of the model that ships with the package."""


def shipped_model() -> Path:
    """Return the folder of the text-to-image model that ships with the package, in the diffusers layout.

    >>> import lading
    >>> (lading.shipped_model() / "model_index.json").is_file()
    True
    """
    return Path(__file__).resolve().parent.parent / SHIPPED


def model_folder(
    model: str | os.PathLike[str],
    components: Iterable[str] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the local folder of a model, fetching what is missing when it is the id of a hub.

    Args:
        model: a folder, "shapes" for the shipped model, or an id such as "org/name": of Hugging Face, whose standard
            cache is used, or of the hub that `LADING_DOWNLOAD_SOURCE` names, whose models go to `./models/<id>`.
        components: the subfolders needed; None for all that `model_index.json` names.
        revision: branch, tag or commit on the hub.
        variant: such as "fp16": these weights are fetched where a component has them.
        subfolder: where in the folder or the repository the pipeline lies.
        token: for private and gated models; None uses the saved one, False none.

    Raises:
        ComponentError: no such folder, or a revision of a local folder.
        DownloadError: the hub could not give it.
    """
    if subfolder is not None and not is_safe_name(subfolder.strip("/")):
        raise ComponentError(f"subfolder={subfolder!r} is not the name of a folder inside the model: correct it")
    inside = Path(subfolder.strip("/")) if subfolder is not None else Path()
    folder = shipped_model() if model == SHIPPED else Path(model)
    if folder.is_dir():
        if revision is not None:
            raise ComponentError(f"{folder}: a local folder has no revision {revision!r}: leave it out")
        return folder / inside
    text = os.fspath(model)
    if is_model_id(text):
        return _fetch(text, components, revision, variant, subfolder, token) / inside
    raise ComponentError(
        f"{text}: no such folder: give a folder in the diffusers layout, the id of a model on the hub (org/name) "
        f"or {SHIPPED!r}, the model that ships with lading"
    )


def _fetch(
    model_id: str,
    components: Iterable[str] | None,
    revision: str | None,
    variant: str | None,
    subfolder: str | None,
    token: str | bool | None,
) -> Path:
    from lading.hub.fetch import fetch_names, pipeline_names

    folder = usual_folder(model_id, revision)
    if skips_download():
        return _held(model_id, revision, folder)
    with or_offline(model_id, folder):
        source = open_source(None, token)
        repository = source.repository(model_id, revision)
        names = pipeline_names(source, repository, components, variant, subfolder)
        if not names:
            where = f" in its folder {subfolder}" if subfolder else ""
            raise DownloadError(
                f"{model_id}: no pipeline{where} in the diffusers layout: {what_is_there(repository.names)}: "
                "fetch its files by name (ModelConfig, or `lading fetch`)"
            )
        return fetch_names(source, repository, names, folder)


def _held(model_id: str, revision: str | None, folder: Path | None) -> Path:
    if folder is None:
        from lading.hub.cache import cached_folder

        return cached_folder(model_id, revision)
    if folder.is_dir():
        return folder
    raise DownloadError(
        f"{model_id}: {folder} is not there, and remote requests are turned off: unset HF_HUB_OFFLINE and "
        "LADING_SKIP_DOWNLOAD once to fetch it"
    )
