"""The C library's allocator, told to keep nothing back."""

from __future__ import annotations

import ctypes
from functools import cache

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 1 << 20


@cache
def return_freed_memory() -> None:
    """Make large blocks go back to the kernel when they are freed, for the rest of the process.

    By default glibc raises its threshold to the size of what was freed, up to 32 MB, and keeps such blocks for later:
    activations would take up to twice what is alive. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
