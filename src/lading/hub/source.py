"""What lading asks of a hub, whichever it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lading.errors import DownloadError
from lading.hub.repository import DEFAULT_SOURCE, SOURCES, RemoteFile, Repository, setting


class Source(Protocol):
    """A hub: it lists a repository and sends its files."""

    name: str

    def repository(self, model_id: str, revision: str | None = None) -> Repository:
        """Ask what a repository holds.

        Raises:
            DownloadError: the hub does not have it, does not show it, or cannot be reached.
        """
        ...

    def download(
        self,
        repository: Repository,
        file: RemoteFile,
        partial: Path,
        on_bytes: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """Complete a local file that holds the start of a remote one, or nothing yet.

        Raises:
            DownloadError: the hub could not give it; what has arrived stays, to be resumed.
            Interrupted: `stop` was set.
        """
        ...

    def read(self, repository: Repository, file: RemoteFile, start: int, end: int) -> bytes:
        """Return a part of a remote file, from byte `start` to before `end`, and fetch no more than that.

        Raises:
            DownloadError: the hub could not give it.
        """
        ...


def chosen_source(name: str | None = None) -> str:
    """Return a hub's name; for None the one that `LADING_DOWNLOAD_SOURCE` names, or Hugging Face.

    Raises:
        DownloadError: there is no such hub.
    """
    chosen = (name or setting("DOWNLOAD_SOURCE") or DEFAULT_SOURCE).lower()
    if chosen not in SOURCES:
        raise DownloadError(f"download_source={chosen!r} is unknown: use one of {', '.join(SOURCES)}")
    return chosen


def open_source(name: str | None = None, token: str | bool | None = None) -> Source:
    """Return the hub of a name; see `chosen_source`.

    Raises:
        DownloadError: there is no such hub, or its client is not installed.
    """
    if chosen_source(name) == "huggingface":
        from lading.hub.huggingface import HuggingFace

        return HuggingFace(token)
    from lading.hub.modelscope import ModelScope

    return ModelScope(token)
