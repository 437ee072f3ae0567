"""Bytes of one URL: in ranges, resumed where a connection broke, with patience for a hub that is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from lading.errors import DownloadError

ATTEMPTS = 6
"""How often in a row a request may fail without a new byte before it is given up."""

MAX_PATIENCE_SECONDS = 60.0
"""The longest wait that a hub may ask for; one that asks for more is reported at once."""

_FIRST_WAIT_SECONDS = 0.5
_BUSY = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - no error: another file of the same fetch failed, or the user stopped it
    """A transfer was asked to stop; what has arrived stays, to be resumed."""


class Patience:
    """Counts failures in a row and waits between them, longer each time or as long as the hub asks."""

    def __init__(self, stop: threading.Event | None = None) -> None:
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
        wait = _wait_asked_for(error)
        self._failures += 1
        if not _is_passing(error) or self._failures >= ATTEMPTS or (wait or 0) > MAX_PATIENCE_SECONDS:
            raise error
        self._stop.wait(wait if wait is not None else _FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))
        self.check()


def patiently(call: Callable[[], T], unless_unreachable: bool = False) -> T:
    """Make a request, and again where the hub is busy.

    Args:
        unless_unreachable: a hub that cannot be reached at all is reported at once.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except Exception as error:  # whatever does not pass is raised again
            if unless_unreachable and _status_of(error) is None:
                raise
            patience.wait_after(error)


def download(
    url: str,
    headers: Mapping[str, str],
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
    patience = Patience(stop)
    while True:
        start = partial.stat().st_size if partial.exists() else 0
        if start > nbytes:
            partial.unlink()
            on_bytes(-start)
            start = 0
        try:
            with partial.open("ab") as file:
                for chunk in _chunks(url, headers, start, nbytes):
                    if chunk is None:  # the server sends the whole file whatever was asked
                        file.truncate(0)
                        on_bytes(-start)
                        continue
                    file.write(chunk)
                    on_bytes(len(chunk))
                    patience.renew()
                    patience.check()
            if partial.stat().st_size == nbytes:
                return
            raise ConnectionError(f"the connection ended after {partial.stat().st_size} of {nbytes} bytes")
        except Exception as error:  # noqa: BLE001 - whatever does not pass is raised again by wait_after
            patience.wait_after(error)


def read_range(url: str, headers: Mapping[str, str], start: int, end: int, nbytes: int) -> bytes:
    """Return the bytes from `start` to before `end` of a file of `nbytes` bytes, and fetch no others."""

    def read() -> bytes:
        content = bytearray()
        for chunk in _chunks(url, headers, start, nbytes, end):
            if chunk is None:
                raise DownloadError(
                    f"{url}: the server sends no parts of files: fetch the whole file (`lading fetch`) and inspect that"
                )
            content += chunk
        if len(content) != end - start:
            raise ConnectionError(f"the connection ended after {len(content)} of {end - start} bytes")
        return bytes(content)

    return patiently(read) if end > start else b""


def _chunks(
    url: str, headers: Mapping[str, str], start: int, nbytes: int, end: int | None = None
) -> Iterator[bytes | None]:
    """Yield a file's bytes from `start` to before `end`; None first where the server begins at its first byte instead.

    The session is that of huggingface_hub, with the proxies and certificates that are set there. It follows redirects,
    and sends credentials to no other host than the first.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status

    end = nbytes if end is None else end
    if start == end:
        return
    asked = {**headers, "Accept-Encoding": "identity"}
    if (start, end) != (0, nbytes):
        asked["Range"] = f"bytes={start}-{end - 1}"
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if "Range" in asked:
            expected = f"bytes {start}-{end - 1}/{nbytes}"
            given = response.headers.get("Content-Range")
            if response.status_code == 206 and given != expected:
                raise DownloadError(
                    f"{url}: asked for {expected}, the server sends {given}: the file was changed there: fetch it again"
                )
            if response.status_code != 206:
                if start or end != nbytes:
                    yield None
                start, end = 0, nbytes
        for chunk in response.iter_bytes():  # as it arrives: what a broken connection gave is kept
            start += len(chunk)
            if start > end:
                raise DownloadError(f"{url}: more than the {nbytes} bytes that the hub lists: fetch it again later")
            yield chunk


def _is_passing(error: Exception) -> bool:
    """Whether the same request may go well a moment later."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status_of(error)
    if status is not None:
        return status in _BUSY
    return isinstance(error, (httpx2.TransportError, ConnectionError)) and not isinstance(error, OfflineModeIsEnabled)


def _status_of(error: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _wait_asked_for(error: Exception) -> float | None:
    from huggingface_hub.errors import HfHubHTTPError

    header = error.response.headers.get("Retry-After") if isinstance(error, HfHubHTTPError) else None
    return float(header) if header is not None and header.isdigit() else None
