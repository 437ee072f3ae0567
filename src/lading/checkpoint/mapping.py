"""Files mapped into memory that stay right when somebody cuts or rewrites them.

A plain mapping ends in SIGBUS when its file is truncated and shows other bytes when it is written. Here every mapped
file is held by a read lease (fcntl(2), F_SETLEASE): the kernel makes whoever opens it for writing, or truncates it,
wait until this process agrees. Before it does, the mapped bytes are copied to anonymous memory at the same addresses,
so tensors keep their values and the writer waits no longer than the copy takes. Leases want a local file system, a
file of this user, and nobody who is writing to it; where one of these is not so, the file is not mapped.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import signal
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_POLL_SECONDS = 0.05
_COPY_BYTES = 16 << 20
_SAMPLES = 64
_F_SETSIG = 10
_MREMAP_MAYMOVE_FIXED = 3
_MADV_POPULATE_READ = 22
_MAP_FAILED = ctypes.c_void_p(-1).value

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class FileMapping(mmap.mmap):
    """A private mapping of a whole file: writable, and the file never changes. It lives while a view of it lives."""

    descriptor: int
    """Of the file as it was opened for this mapping; the lease belongs to it."""

    def tensor(self, dtype: torch.dtype, start: int, end: int) -> torch.Tensor:
        """Return the file's bytes from `start` to `end` as a flat tensor that keeps the mapping alive."""
        import torch

        return torch.frombuffer(self, dtype=dtype, count=(end - start) // dtype.itemsize, offset=start)

    def populate(self, start: int, end: int) -> None:
        """Map the pages from `start` to `end`, which begin at a page, at once: faults would map them few by few."""
        with suppress(OSError):  # before Linux 5.14
            self.madvise(_MADV_POPULATE_READ, start, min(end, len(self)) - start)

    def forget(self, start: int, end: int) -> None:
        """Unmap whole pages from `start` to `end`, which nobody reads any more: they may be lost."""
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < last:
            self.madvise(mmap.MADV_DONTNEED, first, last - first)


def map_file(file: Path, nbytes: int, guarded: bool = True) -> FileMapping | None:
    """Map a file, or return None where it cannot be held by a lease.

    Args:
        nbytes: the file's size.
        guarded: False maps without a lease: cut the file, and whoever touches the mapping gets SIGBUS.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if guarded:
            try:
                fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)  # which is ignored; the default one would kill
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as error:
                _log.debug("%s: not mapped, as it cannot be held by a lease: %s", file, error.strerror)
                os.close(descriptor)
                return None
        mapping = FileMapping(descriptor, nbytes, access=mmap.ACCESS_COPY)
    except BaseException:
        os.close(descriptor)
        raise
    mapping.descriptor = descriptor
    weakref.finalize(mapping, os.close, descriptor).atexit = False
    if guarded:
        _WATCH.add(mapping)
    return mapping


def resident_share(descriptor: int, nbytes: int) -> float:
    """Return the share of an open file that is in the page cache, from pages spread evenly over it; reads nothing.

    The kernel tells only who may write to the file; others see all of it there (mincore(2)).
    """
    if nbytes == 0:
        return 1.0
    pages = range(0, nbytes, max(nbytes // _SAMPLES // mmap.PAGESIZE, 1) * mmap.PAGESIZE)
    answer = ctypes.create_string_buffer(1)
    with mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_COPY) as mapping:
        address = _address(mapping)
        found = 0
        for page in pages:
            found += _libc.mincore(address + page, 1, answer) == 0 and answer.raw[0] & 1
    return found / len(pages)


class _Watch:
    """Looks at every lease and, where somebody waits for one, moves the mapped bytes and lets it go."""

    def __init__(self) -> None:
        self._mappings: weakref.WeakSet[FileMapping] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, mapping: FileMapping) -> None:
        with self._lock:
            self._mappings.add(mapping)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="lading-leases", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                held = list(self._mappings)
                if not held:
                    self._thread = None
                    return
            for mapping in held:
                if fcntl.fcntl(mapping.descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                    _move_to_memory(mapping)
                    with self._lock:
                        self._mappings.discard(mapping)
                    fcntl.fcntl(mapping.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            del held, mapping  # a mapping that only this thread knows must go


def _move_to_memory(mapping: FileMapping) -> None:
    """Put anonymous memory with the same bytes under the addresses of a mapping, piece by piece.

    Whoever reads meanwhile sees the same values; what another thread writes into a piece while it moves is lost.
    """
    address = _address(mapping)
    for offset in range(0, len(mapping), _COPY_BYTES):
        nbytes = min(_COPY_BYTES, len(mapping) - offset)
        piece = _libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if piece == _MAP_FAILED:
            _log.error("no memory to save %d mapped bytes of a file that is being written", len(mapping) - offset)
            return
        ctypes.memmove(piece, address + offset, nbytes)
        if _libc.mremap(piece, nbytes, nbytes, _MREMAP_MAYMOVE_FIXED, address + offset) == _MAP_FAILED:
            _libc.munmap(piece, nbytes)
            _log.error("mapped bytes of a file that is being written could not be moved: errno %d", ctypes.get_errno())
            return


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


_WATCH = _Watch()
os.register_at_fork(after_in_child=_WATCH.__init__)  # type: ignore[misc] # a child has no such thread
