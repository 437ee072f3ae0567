"""Bytes of one remote file: in ranges, resumed where a connection broke, with patience for a hub that is busy."""

from __future__ import annotations

import email.utils
import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from lading.errors import DownloadError

ATTEMPTS = 6
"""How often in a row a request may fail without a new byte before it is given up."""

MAX_PATIENCE_SECONDS = 60.0
"""The longest wait that a hub may ask for; one that asks for more is reported at once."""

MAX_REQUEST_BYTES = 10_000_000_000
"""The most that one request asks for: hubs' storage sends a file of more than 50 GB in ranges alone, and the addresses
that hubs redirect to expire. Source: https://github.com/huggingface/huggingface_hub/pull/2991
"""

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may go well a moment later."""

_FIRST_WAIT_SECONDS = 0.5

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - no error: another file of the same fetch failed, or the user stopped it
    """A transfer was asked to stop; what has arrived stays, to be resumed."""


@dataclass(frozen=True)
class Passing:
    """What a client's error says, where the same request may go well a moment later.

    Attributes:
        status: the hub's answer; None where there was none.
        wait: seconds that the hub asks for; None where it does not say.
    """

    status: int | None = None
    wait: float | None = None


Judge = Callable[[Exception], "Passing | None"]
"""Tells what a client's error says; None where the same request would fail again."""


@dataclass(frozen=True)
class Answer:
    """What a hub sends when it is asked for bytes.

    Attributes:
        status: 206 for the part that was asked for, 200 for the whole file whatever was asked.
        content_range: which bytes these are, as the header of this name writes it.
        pieces: the bytes, as they arrive.
    """

    status: int
    content_range: str | None
    pieces: Iterator[bytes]


class Content(Protocol):
    """One remote file, as the client of its hub reaches it.

    Attributes:
        url: its address, for messages.
        judge: what the client's errors say.
    """

    @property
    def url(self) -> str: ...

    @property
    def judge(self) -> Judge: ...

    def ask(self, headers: dict[str, str]) -> AbstractContextManager[Answer]:
        """Ask for the file, or the range of it that a header names; raise the client's errors."""
        ...


class Patience:
    """Counts failures in a row and waits between them, longer each time or as long as the hub asks."""

    def __init__(self, judge: Judge, stop: threading.Event | None = None) -> None:
        self._judge = judge
        self._stop = stop or threading.Event()
        self._failures = 0

    def check(self) -> None:
        """Raise `Interrupted` where the work shall end."""
        if self._stop.is_set():
            raise Interrupted

    def renew(self) -> None:
        """Forget the failures: something has arrived."""
        self._failures = 0

    def wait_after(self, error: Exception) -> None:
        """Wait until the request may be repeated, or raise the error again where that is hopeless."""
        passing = self._judge(error)
        self._failures += 1
        if passing is None or self._failures >= ATTEMPTS or (passing.wait or 0) > MAX_PATIENCE_SECONDS:
            raise error
        self._stop.wait(passing.wait if passing.wait is not None else _FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))
        self.check()


def patiently(call: Callable[[], T], judge: Judge, unless_unreachable: bool = False) -> T:
    """Make a request, and again where the hub is busy.

    Args:
        unless_unreachable: a hub that cannot be reached at all is reported at once.
    """
    patience = Patience(judge)
    while True:
        try:
            return call()
        except Exception as error:  # whatever does not pass is raised again
            passing = judge(error)
            if unless_unreachable and (passing is None or passing.status is None):
                raise
            patience.wait_after(error)


def seconds_asked_for(retry_after: str | None) -> float | None:
    """Return what a Retry-After header asks for: seconds, or those until a date.

    >>> seconds_asked_for("7"), seconds_asked_for("Thu, 01 Jan 1970 00:00:00 GMT"), seconds_asked_for("soon")
    (7.0, 0.0, None)
    """
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def download(
    content: Content,
    partial: Path,
    nbytes: int,
    on_bytes: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Append to `partial` what is missing of a file of `nbytes` bytes.

    Args:
        on_bytes: told of each piece as it is written; of a negative number where the start was thrown away.

    Raises:
        DownloadError: the hub sends a file of another size.
        Interrupted: `stop` was set.
    """
    patience = Patience(content.judge, stop)
    while True:
        start = partial.stat().st_size if partial.exists() else 0
        if start > nbytes:
            partial.unlink()
            on_bytes(-start)
            start = 0
        end = min(start + MAX_REQUEST_BYTES, nbytes)
        try:
            with partial.open("ab") as file:
                for chunk in _chunks(content, start, end, nbytes):
                    if chunk is None:  # the server sends the whole file whatever was asked
                        file.truncate(0)
                        on_bytes(-start)
                        continue
                    file.write(chunk)
                    on_bytes(len(chunk))
                    patience.renew()
                    patience.check()
            held = partial.stat().st_size
            if held == nbytes:
                return
            if held < end:
                raise ConnectionError(f"the connection ended after {held} of {nbytes} bytes")
        except Exception as error:  # noqa: BLE001 - whatever does not pass is raised again by wait_after
            patience.wait_after(error)


def read_range(content: Content, start: int, end: int, nbytes: int) -> bytes:
    """Return the bytes from `start` to before `end` of a file of `nbytes` bytes, and fetch no others."""

    def read() -> bytes:
        read = bytearray()
        for chunk in _chunks(content, start, end, nbytes):
            if chunk is None:
                raise DownloadError(
                    f"{content.url}: the server sends no parts of files: fetch the whole file (`lading fetch`) and "
                    "inspect that"
                )
            read += chunk
        if len(read) != end - start:
            raise ConnectionError(f"the connection ended after {len(read)} of {end - start} bytes")
        return bytes(read)

    return patiently(read, content.judge) if end > start else b""


def meaning_of_disk(error: OSError) -> str:
    """Say why bytes that arrived could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: make room and start again; what has arrived is resumed"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}cannot be written ({error.strerror or error}): check the folder and its rights"


def _chunks(content: Content, start: int, end: int, nbytes: int) -> Iterator[bytes | None]:
    """Yield a file's bytes from `start` to before `end`; None first where the server sends the whole file instead."""
    if start == end:
        return
    asked = {"Accept-Encoding": "identity"}
    is_part = (start, end) != (0, nbytes)
    if is_part:
        asked["Range"] = f"bytes={start}-{end - 1}"
    with content.ask(asked) as answer:
        if is_part and answer.status == 206:
            expected = f"bytes {start}-{end - 1}/{nbytes}"
            if answer.content_range != expected:
                raise DownloadError(
                    f"{content.url}: asked for {expected}, the server sends {answer.content_range}: the file was "
                    "changed there: fetch it again"
                )
        elif is_part:
            yield None
            start, end = 0, nbytes
        for chunk in answer.pieces:  # as it arrives: what a broken connection gave is kept
            start += len(chunk)
            if start > end:
                raise DownloadError(
                    f"{content.url}: more than the {nbytes} bytes that the hub lists: fetch it again later"
                )
            yield chunk
