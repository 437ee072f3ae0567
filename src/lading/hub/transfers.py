"""Remote files into a folder: several at once, resumed, verified, and placed whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.local import GATHERING
from lading.hub.repository import RemoteFile, Repository
from lading.hub.selection import is_weight
from lading.hub.source import Source
from lading.hub.stream import Interrupted
from lading.sizes import format_size

FILES_AT_ONCE = 8

_CHUNK_BYTES = 1 << 20


class Watcher:
    """Told how a fetch goes, from several threads; this one tells nobody."""

    def start(self, jobs: Sequence[Job]) -> None:
        """These files will be fetched."""

    def advance(self, file: RemoteFile, nbytes: int) -> None:
        """This many more bytes of a file are here; fewer where the number is negative."""

    def verify(self, file: RemoteFile) -> None:
        """A file's bytes are here and are compared with the hub's digest."""

    def finish(self, file: RemoteFile) -> None:
        """A file is whole and in its place."""


@dataclass(frozen=True)
class Job:
    """One file on its way.

    Attributes:
        partial: where its bytes gather; on the same file system as `target`.
        target: where it appears when it is whole.
        lock: the file that one process holds while it fetches this.
    """

    file: RemoteFile
    partial: Path
    target: Path
    lock: Path

    @property
    def missing(self) -> int:
        """Bytes that have not arrived yet."""
        return max(0, self.file.nbytes - (self.partial.stat().st_size if self.partial.exists() else 0))


def fetch_files(
    source: Source,
    repository: Repository,
    jobs: Iterable[Job],
    watcher: Watcher,
) -> None:
    """Fetch files, several at once. What was interrupted before is resumed; what is there already is left alone.

    Raises:
        DownloadError: the disk is too small, a file could not be fetched, or is not what the hub says.
    """
    jobs = sorted(jobs, key=lambda job: -job.file.nbytes)  # the longest first: the others fit beside it
    if not jobs:
        return
    _require_room(repository, jobs)
    watcher.start(jobs)
    stop = threading.Event()

    def run(job: Job) -> None:
        _fetch_one(source, repository, job, watcher, stop)
        watcher.finish(job.file)

    with ThreadPoolExecutor(max_workers=min(FILES_AT_ONCE, len(jobs)), thread_name_prefix="lading-fetch") as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # the first failure, and an interrupt by the user, end the others at their next byte
            if not all(future.done() and not future.cancelled() and future.exception() is None for future in futures):
                stop.set()
                for future in futures:
                    future.cancel()
    errors = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
        raise error


def jobs_in_folder(repository: Repository, files: Iterable[RemoteFile], folder: Path) -> list[Job]:
    """Return what is to be fetched so that a plain folder holds these files.

    A file that is there is kept, so that what a user has edited stays; weights of another size than the hub's were cut
    or are outdated, and are fetched again.

    Raises:
        DownloadError: a link in the folder leads out of it.
    """
    jobs = []
    home = folder.resolve()
    gathering = folder / GATHERING / "lading"
    for file in files:
        target = folder / file.name
        if target.is_file() and (not is_weight(file.name) or target.stat().st_size == file.nbytes):
            continue
        if not target.parent.resolve().is_relative_to(home):
            raise DownloadError(
                f"{target.parent}: a link out of {folder}: refused; remove it, or choose another folder"
            )
        key = hashlib.sha256(f"{file.name}\n{file.digest or repository.commit}".encode()).hexdigest()[:32]
        jobs.append(Job(file, gathering / f"{key}.partial", target, gathering / f"{key}.lock"))
    return jobs


def _fetch_one(source: Source, repository: Repository, job: Job, watcher: Watcher, stop: threading.Event) -> None:
    before = _stamp(job.target)
    with _written(repository, job):
        for folder in {job.partial.parent, job.target.parent, job.lock.parent}:
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(job.lock, stop):
            if job.target.exists() and _stamp(job.target) != before:
                return  # another process has fetched it meanwhile
            source.download(repository, job.file, job.partial, lambda count: watcher.advance(job.file, count), stop)
            watcher.verify(job.file)
            _require_digest(repository, job, stop)
            job.partial.replace(job.target)


def _stamp(file: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        stat = file.stat()
        return stat.st_ino, stat.st_mtime_ns
    return None


@contextlib.contextmanager
def _written(repository: Repository, job: Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{repository.model_id}: {job.file.name}: {error.filename or job.target} cannot be written "
            f"({error.strerror or error}): make room or check the folder, and start again; what has arrived is resumed"
        ) from None


@contextlib.contextmanager
def _alone(lock: Path, stop: threading.Event) -> Iterator[None]:
    """Hold a lock that other processes respect, those of huggingface_hub among them; the kernel frees it at death."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but not in its __all__

    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(WeakFileLock(lock, timeout=0.5))
                break
            except Timeout:
                if stop.is_set():
                    raise Interrupted from None
        yield


def _require_room(repository: Repository, jobs: list[Job]) -> None:
    """Refuse before the first byte what the disk cannot take."""
    places: dict[int, tuple[Path, int]] = {}
    for job in jobs:
        folder = next(parent for parent in job.target.absolute().parents if parent.exists())
        device = folder.stat().st_dev
        places[device] = (folder, places.get(device, (folder, 0))[1] + job.missing)
    for folder, needed in places.values():
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DownloadError(
                f"{repository.model_id}: {format_size(needed)} are missing and the disk of {folder} has "
                f"{format_size(free)} free: make room, or name another folder"
            )


def _require_digest(repository: Repository, job: Job, stop: threading.Event) -> None:
    """Compare what has arrived with what the hub says of it: a sha256, or git's sha1."""
    digest = job.file.digest
    if digest is None:
        return
    found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(usedforsecurity=False)
    if found.name == "sha1":
        found.update(f"blob {job.file.nbytes}\0".encode())
    with job.partial.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
            if stop.is_set():
                raise Interrupted
    if found.hexdigest() != digest:
        job.partial.unlink()
        raise DownloadError(
            f"{repository.model_id}: {job.file.name}: what arrived is not what the hub lists "
            f"({found.name} {found.hexdigest()[:12]}, expected {digest[:12]}): it was removed: fetch it again"
        )
