"""The C library's allocator, told to keep nothing back."""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 1 << 20


@cache
def return_freed_memory() -> None:
    """Make large blocks go back to the kernel when they are freed, for the rest of the process.

    By default glibc raises its threshold to the size of what was freed, up to 32 MB, and keeps such blocks for later:
    activations would take up to twice what is alive. Elsewhere than on glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "sbrk")):
        return
    library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
    library.malloc_trim(0)
    _fill_holes(library)


def _fill_holes(library: ctypes.CDLL) -> None:
    """Take every large hole that the heap has, for good, without touching it.

    What was freed before leaves holes of address space. A large block would be put there, and its pages would stay
    when it is freed.
    """
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    size = 1 << 40
    while size >= _LARGE_BYTES:
        block = library.malloc(size)
        if block is not None and block < library.sbrk(0):
            continue  # it lies in the heap: a hole less
        library.free(block)
        size //= 2
