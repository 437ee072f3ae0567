"""Files that appear whole or not at all. Plain Python."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lading.errors import LadingError


def require_folder(path: Path, example: str) -> None:
    """Refuse, before any work is done, a file that could not be written in the end.

    Args:
        example: a name that such a file could have.

    Raises:
        LadingError: there is no such folder, or the path is a folder itself.
    """
    if not path.parent.is_dir():
        raise LadingError(f"{path}: there is no folder {path.parent}: create it first")
    if path.is_dir():
        raise LadingError(f"{path}: is a folder: name a file in it, such as {path / example}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a file beside this one; it takes its place when the block ends well, and goes when it does not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
