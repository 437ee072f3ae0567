"""ModelScope, through its own client: listing, files, and what its errors mean. The client is an extra."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lading.errors import DownloadError
from lading.hub.repository import RemoteFile, Repository, check_model_id, check_revision, listed
from lading.hub.stream import Interrupted

_DEFAULT_REVISION = "master"


class ModelScope:
    """ModelScope, or the site that `MODELSCOPE_ENDPOINT` or `MODELSCOPE_DOMAIN` names.

    Args:
        token: for private models; None uses the one that is saved or in `MODELSCOPE_API_TOKEN`.

    Raises:
        DownloadError: its client is not installed.
    """

    name = "modelscope"

    def __init__(self, token: str | bool | None = None) -> None:
        try:
            import modelscope_hub
            from modelscope_hub import _download as transfer
        except ImportError:
            raise DownloadError("modelscope is not installed: pip install 'lading[modelscope]'") from None
        # The client has no switch for its own bars, which would cross lading's.
        if hasattr(transfer, "tqdm"):
            transfer.tqdm = functools.partial(getattr(transfer.tqdm, "func", transfer.tqdm), disable=True)
        self._api = modelscope_hub.HubApi(token=token or None)
        self._errors = modelscope_hub.errors

    def repository(self, model_id: str, revision: str | None = None) -> Repository:
        """See `Source.repository`. ModelScope names no commit: the revision itself is asked for each time."""
        check_model_id(model_id)
        check_revision(revision)
        commit = revision or _DEFAULT_REVISION
        try:
            entries = self._api.list_repo_files(model_id, "model", revision=commit)
        except Exception as error:  # noqa: BLE001 - the client lets errors of its transport through
            raise self._failure(error, model_id, revision) from None
        files = [RemoteFile(entry.path, entry.size, entry.sha256 or None) for entry in entries if not entry.is_dir]
        return listed(model_id, revision, commit, files)

    def download(
        self,
        repository: Repository,
        file: RemoteFile,
        partial: Path,
        on_bytes: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """See `Source.download`. The client keeps its own partial file in a folder beside `partial`."""
        gathering = partial.with_suffix(".modelscope")
        try:
            arrived: Path = self._api.downloader.download_file(
                repository.model_id,
                "model",
                file.name,
                revision=repository.commit,
                local_dir=gathering,
                expected_sha256=file.digest,
                file_size=file.nbytes,
                progress_callbacks=[_callback(on_bytes)],
                _cancel_event=stop,
            )
            arrived.replace(partial)
        except Exception as error:  # noqa: BLE001 - as above
            if stop.is_set():
                raise Interrupted from None
            raise self._failure(error, repository.model_id, repository.revision, file) from None
        for folder, _, _ in os.walk(gathering, topdown=False):
            Path(folder).rmdir()

    def _failure(
        self, error: Exception, model_id: str, revision: str | None, file: RemoteFile | None = None
    ) -> DownloadError:
        """Say what an error of the client means and what to do."""
        if isinstance(error, DownloadError):
            return error
        at = f" at revision {revision}" if revision else ""
        subject = f"{model_id}{at}: {f'{file.name}: ' if file is not None else ''}"
        where = self._api.legacy.endpoint
        known = self._errors
        text = " ".join(str(getattr(error, "message", None) or error).split())[:200]
        if isinstance(error, known.NotExistError):
            what = f"{where} has no such model or revision, or it is private: check the name, or log in"
        elif isinstance(error, known.AuthenticationError):
            what = f"{where} does not accept the token: log in (`modelscope login`) or set MODELSCOPE_API_TOKEN"
        elif isinstance(error, known.PermissionDeniedError):
            what = f"{where} forbids it: ask there for access, then log in (`modelscope login`)"
        elif isinstance(error, known.RateLimitError):
            what = f"{where} limits the rate of requests: wait for a while and start again"
        elif isinstance(error, known.FileIntegrityError):
            what = f"what arrived is not what the hub lists ({text}): it was removed: fetch it again"
        elif isinstance(error, known.ServerError):
            what = f"{where} is in trouble ({text}): try again later"
        elif isinstance(error, known.NetworkError):
            what = (
                f"{where} cannot be reached ({text}): check the network and MODELSCOPE_ENDPOINT, "
                "or set LADING_SKIP_DOWNLOAD=true to use what is there"
            )
        elif isinstance(error, OSError):
            what = f"{error.filename or 'it'} cannot be written ({error.strerror or text}): make room and start again"
        else:
            what = f"{where} does not answer as a hub does ({text}): check MODELSCOPE_ENDPOINT"
        return DownloadError(subject + what)


def _callback(on_bytes: Callable[[int], None]) -> type[Any]:
    """Make the class that the client instantiates for a file and tells of its bytes."""
    from modelscope_hub import ProgressCallback

    class Forward(ProgressCallback):  # type: ignore[misc]  # the client ships no types
        def update(self, size: int) -> None:
            on_bytes(size)

    return Forward
