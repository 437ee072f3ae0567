"""The standard cache of the Hugging Face Hub, shared with diffusers and transformers: nothing is fetched twice.

Its layout is documented: `blobs/<digest>` holds contents, `snapshots/<commit>/<name>` links to them, `refs/<revision>`
names a commit. Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.huggingface import HuggingFace
from lading.hub.local import what_is_cached
from lading.hub.repository import RemoteFile, Repository, check_model_id, check_revision
from lading.hub.transfers import FILES_AT_ONCE, Job, Watcher, fetch_files


def fetch_into_cache(
    source: HuggingFace, repository: Repository, files: Iterable[RemoteFile], watcher: Watcher | None = None
) -> Path:
    """Fetch files into the standard cache and return the folder of their commit.

    Raises:
        DownloadError: a file could not be fetched, or is not what the hub lists.
    """
    snapshot = _repository_folder(repository.model_id) / "snapshots" / repository.commit
    missing = [file for file in files if not (snapshot / file.name).exists()]
    jobs = [_job(repository, file) for file in missing if file.digest is not None]  # others the client fetches
    fetch_files(source, repository, [job for job in jobs if not job.target.exists()], watcher or Watcher())
    if missing:
        with ThreadPoolExecutor(max_workers=FILES_AT_ONCE, thread_name_prefix="lading-link") as pool:
            list(pool.map(lambda file: source.link(repository, file), missing))
    _remember(repository)
    return snapshot


def cached_folder(model_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the cache, without a remote request.

    Raises:
        DownloadError: it is not there.
    """
    check_model_id(model_id)
    check_revision(revision)
    folder = _repository_folder(model_id)
    name = revision or "main"
    commit = name
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / name).read_text().strip()
    snapshot = folder / "snapshots" / commit
    if snapshot.is_dir():
        return snapshot
    at = f" at revision {revision}" if revision else ""
    raise DownloadError(
        f"{model_id}{at}: not in the local cache ({what_is_cached(model_id)}), "
        "and remote requests are turned off: unset HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD once to fetch it"
    )


def _job(repository: Repository, file: RemoteFile) -> Job:
    """A blob, under the lock that huggingface_hub takes for it."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    blob = _repository_folder(repository.model_id) / "blobs" / f"{file.digest}"
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repo_folder_name(repo_id=repository.model_id, repo_type="model")
    return Job(file, blob.with_name(f"{file.digest}.lading.incomplete"), blob, locks / f"{file.digest}.lock")


def _repository_folder(model_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")


def _remember(repository: Repository) -> None:
    """Note which commit a revision stands for; last, so that a fetch that was interrupted leaves the old one."""
    revision = repository.revision or "main"
    if revision == repository.commit:
        return
    ref = _repository_folder(repository.model_id) / "refs" / revision
    with contextlib.suppress(OSError):
        if ref.read_text() == repository.commit:
            return
    ref.parent.mkdir(parents=True, exist_ok=True)
    written = ref.with_name(f".{ref.name}.{uuid.uuid4().hex[:8]}")
    written.write_text(repository.commit)
    written.replace(ref)
