"""What a terminal shows while weights are read: one line for each network under way, after the first second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lading.checkpoint.reading import OnBytes

PATIENCE_SECONDS = 1.0

_enabled = True
_lock = threading.Lock()
_display: _Display | None = None


def show_progress(enabled: bool) -> None:
    """Turn the bars of loads on or off for this process; they are on, and only a terminal shows them."""
    global _enabled
    _enabled = enabled


@contextmanager
def loading_bar(label: str, nbytes: int) -> Iterator[OnBytes | None]:
    """Show one load while it lasts, beside others of other threads.

    Yields:
        What to tell of bytes as they arrive; None where nobody watches.
    """
    global _display
    if not (_enabled and sys.stderr.isatty()):
        yield None
        return
    with _lock:
        display = _display = _display or _Display()
        line = display.open(label, nbytes)
    try:
        yield lambda count: display.progress.advance(line, count)
    finally:
        with _lock:
            if display.close(line):
                _display = None


class _Display:
    """A rich display that appears when a second has passed and some load is not done."""

    def __init__(self) -> None:
        self.progress = _new_progress()
        self._open = 0
        self._timer = threading.Timer(PATIENCE_SECONDS, self.progress.start)
        self._timer.daemon = True
        self._timer.start()

    def open(self, label: str, nbytes: int) -> TaskID:
        self._open += 1
        return self.progress.add_task(label, total=nbytes)

    def close(self, line: TaskID) -> bool:
        """End one line; with the last one the display goes, and True is returned."""
        self._open -= 1
        if self._open:
            self.progress.update(line, visible=False)
            return False
        self._timer.cancel()
        self._timer.join()
        self.progress.stop()
        return True


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
