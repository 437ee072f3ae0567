"""The Hugging Face Hub, through `huggingface_hub`: listing, files, and what its errors mean."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lading.errors import DownloadError
from lading.hub.repository import (
    RemoteFile,
    Repository,
    UnreachableError,
    check_model_id,
    check_revision,
    close_models,
    listed,
)
from lading.hub.stream import (
    BUSY,
    Answer,
    Interrupted,
    Judge,
    Passing,
    download,
    meaning_of_disk,
    patiently,
    read_range,
    seconds_asked_for,
)
from lading.sizes import format_size

_LARGEST_HTTP_BYTES = 50_000_000_000
"""A larger file the hub may send in its own protocol alone, which its client speaks, and answer 400 to all else.
Source: https://github.com/huggingface/xet-core/issues/592
"""


class HuggingFace:
    """The Hugging Face Hub, or a mirror that `HF_ENDPOINT` names.

    Args:
        token: for private and gated models; None uses the one that is saved or in `HF_TOKEN`, False none.
        endpoint: its address; None for that of the environment.
    """

    name = "huggingface"

    def __init__(self, token: str | bool | None = None, endpoint: str | None = None) -> None:
        from huggingface_hub import constants

        self._token = token
        self._endpoint = endpoint or constants.ENDPOINT

    def repository(self, model_id: str, revision: str | None = None) -> Repository:
        """See `Source.repository`."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        check_model_id(model_id)
        check_revision(revision)
        api = HfApi(endpoint=self._endpoint, token=self._token)

        def ask() -> Repository:
            commit = api.model_info(model_id, revision=revision).sha
            if not commit:
                raise ValueError("the answer names no commit")
            files = [
                RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)
                for entry in api.list_repo_tree(model_id, recursive=True, revision=commit)
                if isinstance(entry, RepoFile)
            ]
            return listed(model_id, revision, commit, files)

        try:
            return patiently(ask, _passing, unless_unreachable=True)
        except Exception as error:  # noqa: BLE001 - the client lets errors of its transport and its parsers through
            raise self._failure(error, model_id, revision) from None

    def download(
        self,
        repository: Repository,
        file: RemoteFile,
        partial: Path,
        on_bytes: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """See `Source.download`."""
        try:
            download(self._content(repository, file), partial, file.nbytes, on_bytes, stop)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, repository.model_id, repository.revision, file) from None

    def read(self, repository: Repository, file: RemoteFile, start: int, end: int) -> bytes:
        """See `Source.read`."""
        try:
            return read_range(self._content(repository, file), start, end, file.nbytes)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, repository.model_id, repository.revision, file) from None

    def link(self, repository: Repository, file: RemoteFile) -> None:
        """Give a content of the standard cache its name in the commit; the client fetches it where it is not there.

        Raises:
            DownloadError: the hub could not be asked.
        """
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(
                repository.model_id,
                file.name,
                revision=repository.commit,
                token=self._token,
                endpoint=self._endpoint,
            )
        except Exception as error:  # noqa: BLE001 - as above
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise self._failure(cause, repository.model_id, repository.revision, file) from None

    def _content(self, repository: Repository, file: RemoteFile) -> _Content:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in its __all__

        url = hf_hub_url(repository.model_id, file.name, revision=repository.commit, endpoint=self._endpoint)
        return _Content(url, build_hf_headers(token=self._token, library_name="lading"))

    def _failure(
        self, error: Exception, model_id: str, revision: str | None, file: RemoteFile | None = None
    ) -> DownloadError:
        """Say what an error of the client means and what to do."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        if isinstance(error, DownloadError):
            return error
        at = f" at revision {revision}" if revision else ""
        what = _meaning(error, self._endpoint, file)
        if type(error) is RepositoryNotFoundError:
            what += self._close_to(model_id)
        elif isinstance(error, RevisionNotFoundError):
            what += self._revisions_of(model_id)
        kind = UnreachableError if _is_unreachable(error) else DownloadError
        return kind(f"{model_id}{at}: {f'{file.name}: ' if file is not None else ''}{what}")

    def _close_to(self, model_id: str) -> str:
        """Name models of the same organisation whose names are close."""
        from huggingface_hub import HfApi

        with suppress(Exception):  # a hint for an error message: where the hub gives none, there is none
            models = HfApi(endpoint=self._endpoint, token=self._token).list_models(
                author=model_id.partition("/")[0], limit=200
            )
            return close_models(model_id, [model.id for model in models])
        return ""

    def _revisions_of(self, model_id: str) -> str:
        from huggingface_hub import HfApi

        names: list[str] = []
        with suppress(Exception):  # as above
            refs = HfApi(endpoint=self._endpoint, token=self._token).list_repo_refs(model_id)
            names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f": it has {', '.join(names[:20])}" if names else ""


@dataclass(frozen=True)
class _Content:
    """A file by its address, through the client's session with the proxies and certificates that are set there.

    It follows redirects, and sends credentials to no other host than the first.
    """

    url: str
    headers: Mapping[str, str]

    @property
    def judge(self) -> Judge:
        return _passing

    @contextmanager
    def ask(self, headers: dict[str, str]) -> Iterator[Answer]:
        from huggingface_hub import constants, get_session, hf_raise_for_status

        asked = {**self.headers, **headers}
        with get_session().stream(
            "GET", self.url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            yield Answer(response.status_code, response.headers.get("Content-Range"), response.iter_bytes())


def _passing(error: Exception) -> Passing | None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # public, as above

    if not isinstance(error, HfHubHTTPError):
        return Passing() if _is_unreachable(error) else None
    headers = error.response.headers
    wait = seconds_asked_for(headers.get("Retry-After"))
    if wait is None and (limit := parse_ratelimit_headers(headers)) is not None and limit.remaining == 0:
        wait = float(limit.reset_in_seconds)
    return Passing(error.response.status_code, wait) if error.response.status_code in BUSY else None


def _is_unreachable(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, (httpx2.TransportError, ConnectionError)) and not isinstance(error, OfflineModeIsEnabled)


def _meaning(error: Exception, where: str, file: RemoteFile | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"the model is gated: accept its terms at {where}, then log in (`hf auth login`) or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{where} has no such model, or it is private: check the name, or log in (`hf auth login`) or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the hub has the model but no such revision"
    if isinstance(error, RemoteEntryNotFoundError):
        return "the hub lists this file but does not have it: try again later, or name another revision"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 400 and file is not None and file.nbytes > _LARGEST_HTTP_BYTES:
            return (
                f"{where} sends a file of {format_size(file.nbytes)} in its own protocol alone: "
                "fetch it with the hub's client (`hf download`), into the same cache"
            )
        passing = _passing(error)
        return _meaning_of_status(status, passing.wait if passing is not None else None, where)
    if isinstance(error, OfflineModeIsEnabled):
        return "remote requests are turned off: unset HF_HUB_OFFLINE to fetch it"
    if _is_unreachable(error):
        return f"{where} cannot be reached ({_one_line(error)}): check the network and HF_ENDPOINT"
    if isinstance(error, HFValidationError):
        return f"the hub's client refuses the name ({_one_line(error)}): write it as org/name"
    if isinstance(error, OSError):
        return meaning_of_disk(error)
    return f"{where} does not answer as a hub does ({_one_line(error)}): check HF_ENDPOINT"


def _meaning_of_status(status: int, wait_asked_for: float | None, where: str) -> str:
    if status == 429:
        wait = f" for {wait_asked_for:.0f} s" if wait_asked_for else " for a while"
        return f"{where} limits the rate of requests (429): wait{wait}, or log in (`hf auth login`) for a higher limit"
    if status == 401:
        return f"{where} wants a token that may read this model (401): log in (`hf auth login`) or correct HF_TOKEN"
    if status == 403:
        return f"{where} forbids it (403): the token has no right to read this model: ask for access, or log in anew"
    if status == 416:
        return "the file was changed on the hub meanwhile (416): fetch it again"
    if status >= 500:
        return f"{where} is in trouble ({status}): try again later"
    return f"{where} answered {status}, which no hub does here: check HF_ENDPOINT"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
