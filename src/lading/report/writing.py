"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lading.errors import LadingError


def require_folder(path: Path) -> None:
    """Refuse, before any work is done, a file that could not be written in the end.

    Raises:
        LadingError: there is no such folder, or the path is a folder itself.
    """
    if not path.parent.is_dir():
        raise LadingError(f"{path}: there is no folder {path.parent}: create it first")
    if path.is_dir():
        raise LadingError(f"{path}: is a folder: name a file in it")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; what was there before is replaced when all is written.

    Raises:
        LadingError: it cannot be written.
    """
    require_folder(path)
    part = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        part = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        raise LadingError(f"{path}: cannot be written: {error.strerror}: make room there, or name another") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
