"""From what a user calls a model to a local folder in the diffusers layout."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lading.checkpoint.dduf_file import is_dduf, unpack_dduf
from lading.errors import ComponentError, DownloadError
from lading.hub.repository import is_model_id, is_safe_name, skips_download, what_is_there
from lading.hub.selection import wanted_files

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
        model: a folder, a DDUF file, "shapes" for the shipped model, or a Hugging Face id such as "org/name".
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
    if is_dduf(folder):
        folder = unpack_dduf(folder)
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
    from lading.hub.cache import cached_folder, fetch_into_cache
    from lading.hub.huggingface import HuggingFace

    if skips_download():
        return cached_folder(model_id, revision)
    source = HuggingFace(token)
    repository = source.repository(model_id, revision)
    names = wanted_files(repository.names, components, variant, subfolder)
    if not names:
        where = f" in its folder {subfolder}" if subfolder else ""
        raise DownloadError(
            f"{model_id}: no pipeline{where} in the diffusers layout: {what_is_there(repository.names)}: "
            "fetch its files by name (ModelConfig, or `lading fetch`)"
        )
    return fetch_into_cache(source, repository, repository.named(names))
