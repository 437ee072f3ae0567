"""Memory that tensors are views of: huge pages, placed as the file places its bytes."""

from __future__ import annotations

import mmap
import queue
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lading.errors import CheckpointError
from lading.sizes import format_size

if TYPE_CHECKING:
    import torch

BLOCK = 4096
"""What O_DIRECT asks of offsets, lengths and addresses: a multiple of the logical block, at most this everywhere."""


def block_floor(offset: int) -> int:
    """Return the last block boundary at or before an offset."""
    return offset // BLOCK * BLOCK


def block_ceiling(offset: int) -> int:
    """Return the first block boundary at or after an offset."""
    return -(-offset // BLOCK) * BLOCK


class _Memory(mmap.mmap):
    """Anonymous memory; a subclass, as only its finalizers run before the memory is unmapped."""


class Arena:
    """Anonymous memory for the bytes from `start` to `end` of a file, aligned to blocks as they are in the file.

    Memory is taken page by page as it is written, and given back when the arena and all tensors made of it are gone.

    Args:
        huge_pages: let the kernel take pages of some MB; not where only some bytes are ever written.

    Raises:
        CheckpointError: there is not that much address space.
    """

    def __init__(self, start: int, end: int, huge_pages: bool = True) -> None:
        self.start = block_floor(start)
        self.nbytes = max(block_ceiling(end) - self.start, BLOCK)
        try:
            self._memory = _Memory(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise CheckpointError(f"no memory for {format_size(self.nbytes)} of tensors: {error.strerror}") from None
        with suppress(OSError, AttributeError):  # a kernel built without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)

    def discard(self) -> None:
        """Give the memory back and keep the addresses: what is read from them until they are written again is zero."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have a function called when the arena and all tensors made of it are gone, before the memory is."""
        weakref.finalize(self._memory, callback).atexit = False

    def view(self, start: int, end: int) -> memoryview:
        """Return the memory of the file's bytes from `start` to `end`."""
        return memoryview(self._memory)[start - self.start : end - self.start]

    def tensor(self, dtype: torch.dtype, start: int, end: int) -> torch.Tensor:
        """Return the file's bytes from `start` to `end` as a flat tensor that keeps the arena alive."""
        import torch

        count = (end - start) // dtype.itemsize
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start - self.start)


class Scratch:
    """Arenas for one piece each that tasks borrow in turn; there are as many as there were borrowers at once.

    Attributes:
        piece_bytes: the most that an arena is for, of any place in a file.
        nbytes: what an arena takes.
    """

    def __init__(self, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self.nbytes = block_ceiling(piece_bytes) + 2 * BLOCK
        self._free: queue.SimpleQueue[Arena] = queue.SimpleQueue()

    @contextmanager
    def borrow(self) -> Iterator[Arena]:
        """Lend an arena of the bytes from 0 on; nothing may refer to it after the block."""
        try:
            arena = self._free.get_nowait()
        except queue.Empty:
            arena = Arena(0, self.nbytes)
        try:
            yield arena
        finally:
            self._free.put(arena)
