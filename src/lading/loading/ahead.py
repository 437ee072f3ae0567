"""Weights on their way from the disk while Python imports torch, diffusers and transformers. Plain Python."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from lading import host
from lading.checkpoint.reading import fetch
from lading.hub.selection import wanted_files

_MEMORY_SHARE = 0.5
"""Of the free memory that the page cache may take for this."""

_log = logging.getLogger("lading.loading")


def read_ahead(folder: Path, variant: str | None = None) -> threading.Thread | None:
    """Have the kernel fetch a pipeline's files into the page cache, in the order of `model_index.json`.

    Nothing is done where the libraries are imported already, since then the loaders start at once, or where the files
    would crowd the memory.

    Returns:
        The thread that asks for them, or None.
    """
    if "torch" in sys.modules and "diffusers" in sys.modules:
        return None
    names = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*") if file.is_file())
    files = [folder / name for name in wanted_files(names, None, variant)]
    nbytes = sum(file.stat().st_size for file in files)
    if nbytes > _MEMORY_SHARE * host.available_memory():
        return None
    _log.debug("%s: %d bytes are fetched while libraries are imported", folder, nbytes)
    thread = threading.Thread(target=_fetch, args=(files,), name="lading-ahead", daemon=True)
    thread.start()
    return thread


def _fetch(files: list[Path]) -> None:
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the loader says what is wrong with it
            continue
        fetch(descriptor, 0, os.fstat(descriptor).st_size)
        os.close(descriptor)
