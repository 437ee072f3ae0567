"""`torch.save` over a file that this process has mapped.

torch opens files in C++ and keeps Python's global lock meanwhile. The kernel makes it wait for the lease on the
mapping, and the thread that would let the lease go waits for the lock: after 45 seconds the kernel cuts the file, and
the process ends with a bus error. So what torch is about to write is first opened from Python, which waits without the
lock.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Any


@cache
def let_torch_save() -> None:
    """Let `torch.save` overwrite mapped files, from now on in this process."""
    from torch import serialization

    open_writer = serialization._open_zipfile_writer

    def wait_and_open(name_or_buffer: Any) -> Any:
        if isinstance(name_or_buffer, (str, os.PathLike)):
            with suppress(OSError):  # torch meets it too, and says what is wrong
                os.close(os.open(name_or_buffer, os.O_WRONLY | os.O_CLOEXEC))
        return open_writer(name_or_buffer)

    serialization._open_zipfile_writer = wait_and_open
