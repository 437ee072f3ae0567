"""ModelScope, through its own client: listing, files, and what its errors mean. The client is an extra."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lading.hub.stream import BUSY, Answer, Interrupted, Judge, Passing, download, meaning_of_disk, read_range

_DEFAULT_REVISION = "master"
_PIECE_BYTES = 1 << 16


class ModelScope:
    """ModelScope, or the site that `MODELSCOPE_ENDPOINT` or `MODELSCOPE_DOMAIN` names.

    Where none is named, models are looked for on modelscope.cn and then on modelscope.ai, or the other way round with
    `MODELSCOPE_PREFER_AI_SITE`. Accounts are of one site: a token is sent to the first alone.

    Args:
        token: for private models; None uses the one that is saved or in `MODELSCOPE_API_TOKEN`, False none.
        endpoint: its address; None for that of the environment.

    Raises:
        DownloadError: its client is not installed.
    """

    name = "modelscope"

    def __init__(self, token: str | bool | None = None, endpoint: str | None = None) -> None:
        try:
            from modelscope_hub import HubApi
        except ImportError:
            raise DownloadError("modelscope is not installed: pip install 'lading[modelscope]'") from None
        if "MODELSCOPE_LOG_LEVEL" not in os.environ:  # what it would say of its attempts comes in one error
            logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        first, self._second = _sites(endpoint)
        self._api = HubApi(endpoint=first, token="" if token is False else token if isinstance(token, str) else None)

    def repository(self, model_id: str, revision: str | None = None) -> Repository:
        """See `Source.repository`. ModelScope names no commit: the revision itself is asked for each time."""
        check_model_id(model_id)
        check_revision(revision)
        commit = revision or _DEFAULT_REVISION
        try:
            files = self._files(model_id, commit)
        except Exception as error:  # noqa: BLE001 - the client lets errors of its transport and its parsers through
            raise self._failure(error, model_id, revision) from None
        return listed(model_id, revision, commit, files)

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
            download(_Content(self._api, repository, file), partial, file.nbytes, on_bytes, stop)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, repository.model_id, repository.revision, file) from None

    def read(self, repository: Repository, file: RemoteFile, start: int, end: int) -> bytes:
        """See `Source.read`."""
        try:
            return read_range(_Content(self._api, repository, file), start, end, file.nbytes)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, repository.model_id, repository.revision, file) from None

    def _files(self, model_id: str, revision: str) -> list[RemoteFile]:
        """List a model's files on the site that has it; later requests go there."""
        from modelscope_hub import HubApi
        from modelscope_hub.errors import NotExistError

        try:
            return _listing(self._api, model_id, revision)
        except NotExistError:
            if self._second is None:
                raise
            second = HubApi(endpoint=self._second, token="")
            with suppress(NotExistError):
                files = _listing(second, model_id, revision)
                self._api, self._second = second, None
                return files
            raise

    def _failure(
        self, error: Exception, model_id: str, revision: str | None, file: RemoteFile | None = None
    ) -> DownloadError:
        """Say what an error of the client means and what to do."""
        from modelscope_hub.errors import NotExistError

        if isinstance(error, DownloadError):
            return error
        at = f" at revision {revision}" if revision else ""
        where = self._api.legacy.endpoint
        if not isinstance(error, NotExistError):
            what = _meaning(error, where)
        elif file is not None:
            what = "the hub lists this file but does not have it: try again later, or name another revision"
        else:
            nobody = f"neither {where} nor {self._second} has such a" if self._second else f"{where} has no such"
            what = (
                f"{nobody} model or revision, or it is private: check the name, or log in (`modelscope login`) or set "
                f"MODELSCOPE_API_TOKEN{self._close_to(model_id)}"
            )
        kind = UnreachableError if _is_unreachable(error) else DownloadError
        return kind(f"{model_id}{at}: {f'{file.name}: ' if file is not None else ''}{what}")

    def _close_to(self, model_id: str) -> str:
        """Name models of the same owner whose names are close."""
        with suppress(Exception):  # a hint for an error message: where the hub gives none, there is none
            page = self._api.list_repos("model", owner=model_id.partition("/")[0], page_size=100)
            return close_models(model_id, [model.repo_id for model in page.items])
        return ""


def _sites(endpoint: str | None) -> tuple[str | None, str | None]:
    """Return the site to ask, None for what the client reads from the environment, and the one to ask after it."""
    from modelscope_hub import constants

    if endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN"):
        return endpoint, None
    sites = constants.DEFAULT_ENDPOINT, constants.DEFAULT_INTL_ENDPOINT
    prefers_second = os.environ.get(constants.ENV_PREFER_AI_SITE, "").lower() in ("1", "true", "yes", "on")
    return sites[::-1] if prefers_second else sites


def _listing(api: Any, model_id: str, revision: str) -> list[RemoteFile]:
    entries = api.list_repo_files(model_id, "model", revision=revision)
    return [RemoteFile(entry.path, entry.size, entry.sha256 or None) for entry in entries if not entry.is_dir]


@dataclass(frozen=True)
class _Content:
    """A file through the client's session, which follows redirects and sends credentials to no other host."""

    api: Any
    repository: Repository
    file: RemoteFile

    @property
    def url(self) -> str:
        repository = self.repository
        url: str = self.api.legacy.get_download_url(repository.model_id, "model", self.file.name, repository.commit)
        return url

    @property
    def judge(self) -> Judge:
        return _passing

    @contextmanager
    def ask(self, headers: dict[str, str]) -> Iterator[Answer]:
        response = self.api.legacy.download_stream(
            self.repository.model_id, "model", self.file.name, self.repository.commit, headers
        )
        with response:
            pieces = iter(lambda: response.raw.read1(_PIECE_BYTES), b"")  # what is there, without waiting for more
            yield Answer(response.status_code, response.headers.get("Content-Range"), pieces)


def _passing(error: Exception) -> Passing | None:
    from modelscope_hub.errors import APIError

    status = error.status_code if isinstance(error, APIError) else None
    if status is None:
        return Passing() if _is_unreachable(error) else None
    return Passing(status, getattr(error, "retry_after", None)) if status in BUSY else None


def _is_unreachable(error: Exception) -> bool:
    import requests
    import urllib3

    return isinstance(
        error, (ConnectionError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)
    )


def _meaning(error: Exception, where: str) -> str:
    import requests
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError, RateLimitError, ServerError

    text = " ".join(str(getattr(error, "message", None) or error).split())[:200] or type(error).__name__
    if isinstance(error, AuthenticationError):
        return f"{where} does not accept the token (401): log in (`modelscope login`) or set MODELSCOPE_API_TOKEN"
    if isinstance(error, PermissionDeniedError):
        return f"{where} forbids it (403): ask there for access, then log in (`modelscope login`)"
    if isinstance(error, RateLimitError):
        wait = f"for {error.retry_after:.0f} s" if error.retry_after else "for a while"
        return f"{where} limits the rate of requests (429): wait {wait}, or log in (`modelscope login`)"
    if isinstance(error, ServerError):
        return f"{where} is in trouble ({error.status_code}): try again later"
    if _is_unreachable(error):
        return f"{where} cannot be reached ({text}): check the network and MODELSCOPE_ENDPOINT"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return meaning_of_disk(error)
    return f"{where} does not answer as a hub does ({text}): check MODELSCOPE_ENDPOINT"
