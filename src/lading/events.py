"""What happens at the edges, told to whoever records it: loads, reads, copies, waits. Plain Python.

Nothing is told, and next to nothing is spent, while nobody records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Moment: TypeAlias = "float | Callable[[], float]"
"""Seconds on the clock of `time.perf_counter`; a device tells them when it has come so far."""


def seconds_of(moment: Moment) -> float:
    """Return a moment's seconds; wait for the device if it has not come so far."""
    return moment() if callable(moment) else moment


Kind: TypeAlias = Literal["load", "open", "read", "copy", "trace", "wait", "held"]


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        kind: a component was loaded; a file was opened, read, or copied to a device; a call was traced before it began;
            computation waited for weights; weights took so many bytes where they compute, from then on.
        name: of what it happened to.
        owner: the component or module, or the path of the file.
        nbytes: that were moved, or are held.
        thread: in which it happened.
    """

    kind: Kind
    name: str
    owner: Any
    start: Moment
    end: Moment
    nbytes: int
    thread: str


class Recorder(Protocol):
    """Who is told; any thread tells, and it must not take long."""

    def add(self, event: Event) -> None:
        """Note an event."""


_recorders: tuple[Recorder, ...] = ()
_recordings = 0
_lock = threading.Lock()


def wanted() -> bool:
    """Whether anybody records."""
    return bool(_recorders)


def recordings() -> int:
    """How many recordings have begun in this process."""
    return _recordings


def tell(kind: Kind, name: str, owner: Any, start: Moment, end: Moment, nbytes: int = 0) -> None:
    """Tell of an event that is over."""
    event = Event(kind, name, owner, start, end, nbytes, threading.current_thread().name)
    for recorder in _recorders:
        recorder.add(event)


@contextmanager
def span(
    kind: Kind, name: str, owner: Any, nbytes: int = 0, clock: Callable[[], Moment] = time.perf_counter
) -> Iterator[None]:
    """Tell of what happens in the block.

    Args:
        clock: gives the moments at which it begins and ends.
    """
    if not _recorders:
        yield
        return
    start = clock()
    try:
        yield
    finally:
        tell(kind, name, owner, start, clock(), nbytes)


@contextmanager
def told_to(recorder: Recorder) -> Iterator[None]:
    """Let a recorder be told of everything that happens in this process during the block."""
    global _recorders, _recordings
    with _lock:
        _recorders = (*_recorders, recorder)
        _recordings += 1
    try:
        yield
    finally:
        with _lock:
            _recorders = tuple(other for other in _recorders if other is not recorder)
