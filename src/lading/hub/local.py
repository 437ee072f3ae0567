"""What is here of a model, for errors that say how to go on without a hub."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.repository import UnreachableError, what_is_there

GATHERING = ".cache"
"""The folder, in one of fetched files, where those on their way are; it holds no file of the model."""


@contextlib.contextmanager
def or_offline(setting: str, here: Callable[[], str]) -> Iterator[None]:
    """Let the error of a hub that cannot be reached say what is here and which setting uses it."""
    try:
        yield
    except UnreachableError as error:
        raise DownloadError(f"{error}, or set {setting} to use what is here: {here()}") from None


def files_below(folder: Path) -> list[str]:
    """Return the names of a model's files in a plain folder."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return [name.as_posix() for name in names if name.parts[0] != GATHERING]


def what_is_in(folder: Path) -> str:
    """Write which files of a model a plain folder holds."""
    return f"in {folder} {what_is_there(files_below(folder))}"


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
