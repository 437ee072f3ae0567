"""The disk under the checkpoints: what is in the page cache, and how fast it is."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

RAW_THREADS = 4
RAW_BYTES = 8 << 20


def drop_from_cache(files: Iterable[Path]) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bring_into_cache(files: Iterable[Path]) -> None:
    """Read files through the page cache."""
    buffer = bytearray(RAW_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def raw_reader(files: Sequence[Path]) -> Callable[[], None]:
    """Return what reads files past the page cache, by several threads into memory used again and again.

    This is as fast as files leave the disk: nothing is kept. It can be called once.
    """
    sizes = {os.open(file, os.O_RDONLY | os.O_DIRECT): file.stat().st_size for file in files}
    pieces = deque((descriptor, offset) for descriptor, size in sizes.items() for offset in range(0, size, RAW_BYTES))
    buffers = [mmap.mmap(-1, RAW_BYTES) for _ in range(RAW_THREADS)]
    for buffer in buffers:
        buffer.write(bytes(RAW_BYTES))  # the kernel hands out its pages now

    def read_pieces(buffer: mmap.mmap) -> int:
        done = 0
        with suppress(IndexError):
            while True:
                descriptor, offset = pieces.popleft()
                done += os.preadv(descriptor, [buffer], offset)
        return done

    def read() -> None:
        with ThreadPoolExecutor(RAW_THREADS) as pool:
            done = sum(pool.map(read_pieces, buffers))
        if done != sum(sizes.values()):
            raise OSError(f"{done} bytes read of {sum(sizes.values())}")

    return read
