"""Bytes of open files into memory that the caller owns, by several threads, asynchronously. Plain Python.

Every read of weights in lading ends here. Work is cut into pieces of at most `PIECE_BYTES`; the reading threads, shared
by the whole process, take one piece each, so that no more than `THREADS` of them are on the way at a time. The pieces
of one `Reading` stop together: at the first error, when it is cancelled, and at Ctrl-C.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from lading import events
from lading.checkpoint.arena import BLOCK, block_ceiling, block_floor
from lading.checkpoint.header import FileInventory, FileStamp
from lading.errors import CheckpointError

THREADS = max(4, min(16, os.cpu_count() or 1))
PIECE_BYTES = 8 << 20
_FETCH_BYTES = 128 << 10

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()

OnBytes = Callable[[int], None]
"""Told of bytes as they arrive, from the reading threads."""


@dataclass(frozen=True)
class Extent:
    """A stretch of a file and where it goes.

    Attributes:
        offset: of the first byte in the file.
        memory: writable, as long as the stretch; it may run past the file's end by less than a block.
    """

    offset: int
    memory: memoryview


class Reading:
    """Tasks under way on the reading threads. Memory they write to must not be used before `wait` returns."""

    def __init__(self, tasks: Iterable[Callable[[], None]]) -> None:
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        pool = _reading_pool()
        self._futures: list[Future[None]] = [pool.submit(self._run, task) for task in tasks]

    @property
    def done(self) -> bool:
        """Whether every task has ended, for better or worse."""
        return all(future.done() for future in self._futures)

    def wait(self) -> None:
        """Return when all is read.

        Raises:
            CheckpointError: of the task that failed first; the others have stopped.
        """
        try:
            wait(self._futures)
        except BaseException:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        if self._stopped.is_set():
            raise CheckpointError("the reading was cancelled")

    def cancel(self) -> None:
        """Stop, and return when no thread writes to the memory any more."""
        self._stopped.set()
        for future in self._futures:
            future.cancel()
        wait(self._futures)

    def _run(self, task: Callable[[], None]) -> None:
        if self._stopped.is_set():
            return
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            with self._error_lock:
                self._error = self._error or error
            self._stopped.set()


class OpenFile:
    """A file open for reading that must stay as it was when its header was read."""

    def __init__(self, inventory: FileInventory) -> None:
        """Open a file for reads through the page cache.

        Raises:
            CheckpointError: it cannot be opened, or has changed.
        """
        self.file = inventory.file
        self.nbytes = inventory.stamp.nbytes
        self._stamp = inventory.stamp
        try:
            self.descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read: {error.strerror}") from None
        self._direct: int | None = None
        self._descriptors = [self.descriptor]
        self._close = weakref.finalize(self, _close, self._descriptors)
        self.require_unchanged()

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._direct is not None

    def open_direct(self) -> bool:
        """Let reads go past the page cache from now on, and tell whether the file system offers that."""
        try:
            self._direct = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except (OSError, AttributeError):
            return False
        self._descriptors.append(self._direct)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # it reads edges: nothing ahead of them
        return True

    def fetches(self, stretches: Iterable[tuple[int, int]], on_bytes: OnBytes | None) -> Iterator[Callable[[], None]]:
        """Requests to the kernel to bring stretches into the page cache; they do not wait for the bytes."""
        for first, last in stretches:
            for start in range(first, last, PIECE_BYTES):
                yield partial(self._fetch, start, min(start + PIECE_BYTES, last), on_bytes)

    def fill(self, memory: memoryview, offset: int) -> None:
        """Read into memory from an offset on, in this thread; memory past the file's end stays as it is.

        Raises:
            CheckpointError: the file shrank or changed, or the disk fails.
        """
        wanted = min(len(memory), self.nbytes - offset)
        with events.span("read", self.file.name, self.file, wanted):
            self._fill(memory, offset, wanted)
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the file is not the one whose header was read."""
        if FileStamp.of(os.fstat(self.descriptor)) != self._stamp:
            raise CheckpointError(f"{self.file}: the file changed after its header was read: load it again")

    def close(self) -> None:
        """Close the file; there must be no reading under way."""
        self._close()

    def tasks(self, extents: Iterable[Extent], on_bytes: OnBytes | None) -> Iterator[Callable[[], None]]:
        """The reads that fill extents, each of at most `PIECE_BYTES`."""
        for extent in extents:
            for start, end in _pieces(extent):
                yield partial(self._read, extent.memory[start:end], extent.offset + start, on_bytes)

    def _fill(self, memory: memoryview, offset: int, wanted: int) -> None:
        aligned = self.direct and (offset | _address(memory)) % BLOCK == 0
        done = 0
        while done < wanted:
            whole = aligned and done % BLOCK == 0 and len(memory) - done >= BLOCK
            count = self._read_once(memory[done : block_floor(len(memory)) if whole else wanted], offset + done, whole)
            if count == 0:
                self.require_unchanged()
                raise CheckpointError(f"{self.file}: the file shrank while it was read: load it again when it is whole")
            done += count

    def _read(self, memory: memoryview, offset: int, on_bytes: OnBytes | None) -> None:
        self.fill(memory, offset)
        if on_bytes is not None:
            on_bytes(min(len(memory), self.nbytes - offset))

    def _fetch(self, start: int, end: int, on_bytes: OnBytes | None) -> None:
        fetch(self.descriptor, start, end)
        if on_bytes is not None:
            on_bytes(end - start)

    def _read_once(self, memory: memoryview, offset: int, direct: bool) -> int:
        descriptor = self._direct if direct and self._direct is not None else self.descriptor
        try:
            return os.preadv(descriptor, [memory], offset)
        except OSError as error:
            if descriptor != self.descriptor and error.errno == errno.EINVAL:  # O_DIRECT opened, and not served
                return self._read_once(memory, offset, direct=False)
            raise CheckpointError(f"{self.file}: reading failed at byte {offset}: {error.strerror}") from None


def fetch(descriptor: int, start: int, end: int) -> None:
    """Ask the kernel to bring a stretch of a file into the page cache; it reads no more than this much at once."""
    for offset in range(start, end, _FETCH_BYTES):
        os.posix_fadvise(descriptor, offset, min(_FETCH_BYTES, end - offset), os.POSIX_FADV_WILLNEED)


def _pieces(extent: Extent) -> Iterator[tuple[int, int]]:
    """Cut an extent so that pieces begin at block boundaries of the file, all but the first, and end there."""
    end = extent.offset + len(extent.memory)
    start = extent.offset
    if start % BLOCK and block_ceiling(start) < end:
        yield 0, block_ceiling(start) - start
        start = block_ceiling(start)
    body = block_floor(end)
    while start < body:
        stop = min(start + PIECE_BYTES, body)
        yield start - extent.offset, stop - extent.offset
        start = stop
    if start < end:
        yield start - extent.offset, end - extent.offset


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) if len(memory) else 0


def _reading_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lading-reading")
        return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)
