"""Where models of a hub lie here, and what is there of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.repository import UnreachableError, check_model_id, check_revision, setting, what_is_there
from lading.hub.source import chosen_source

GATHERING = ".cache"
"""The folder, in one of fetched files, where those on their way are; it holds no file of the model."""


def model_place(base: str | os.PathLike[str], model_id: str) -> Path:
    """Return the folder of a model below a base folder.

    Raises:
        DownloadError: the id is none.
    """
    check_model_id(model_id)
    return Path(base) / model_id


def usual_folder(model_id: str, revision: str | None, source: str | None = None) -> Path | None:
    """Return where a model goes if nobody says where: None for the standard cache, which is Hugging Face's alone.

    >>> usual_folder("org/name", "v2", "modelscope").as_posix()
    'models/org/name@v2'
    """
    if chosen_source(source) == "huggingface":
        return None
    check_revision(revision)
    place = model_place(setting("MODEL_BASE_PATH") or "./models", model_id)
    return place if revision is None else place.with_name(f"{place.name}@{revision.replace('/', '--')}")


@contextlib.contextmanager
def or_offline(model_id: str, folder: Path | None) -> Iterator[None]:
    """Let the error of a hub that cannot be reached say what is here and how to use it.

    Args:
        folder: where the model's files go; None for the standard cache of the Hugging Face Hub.
    """
    try:
        yield
    except UnreachableError as error:
        switch = "HF_HUB_OFFLINE=1" if folder is None else "LADING_SKIP_DOWNLOAD=true"
        here = what_is_cached(model_id) if folder is None else f"in {folder} {what_is_there(files_below(folder))}"
        raise DownloadError(f"{error}, or set {switch} to use what is here: {here}") from None


def files_below(folder: Path) -> list[str]:
    """Return the names of a model's files in a plain folder."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return [name.as_posix() for name in names if name.parts[0] != GATHERING]


def what_is_cached(model_id: str) -> str:
    """Write which files of a model the cache of the Hugging Face Hub holds; of which models, where it holds none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    repository = cache / repo_folder_name(repo_id=model_id, repo_type="model")
    revisions = []
    for ref in sorted(file for file in (repository / "refs").rglob("*") if file.is_file()):
        snapshot = repository / "snapshots" / ref.read_text(errors="replace").strip()
        if snapshot.is_dir():
            revisions.append(f"at {ref.relative_to(repository / 'refs')} {what_is_there(files_below(snapshot))}")
    if revisions:
        return f"in {cache}, {'; '.join(revisions[:5])}"
    names = [entry.name.removeprefix("models--").replace("--", "/", 1) for entry in cache.glob("models--*--*")]
    return f"{cache} has {', '.join(sorted(names)[:20]) or 'no model'}"
