"""Garbage collection, put off while libraries are imported and networks are loaded.

What these make stays, hundreds of thousands of objects, and each collection visits them again: with torch, diffusers
and transformers a seventh of the time of their import, and a quarter of a second for one that falls into a load. It
holds the interpreter, so that threads which read wait too.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_was_enabled = False


@contextmanager
def collection_put_off() -> Iterator[None]:
    """Let no automatic collection begin inside; several threads may be inside at once."""
    global _inside, _was_enabled
    with _lock:
        if _inside == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _was_enabled:
                gc.enable()
