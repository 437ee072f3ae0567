"""Which way to read a file: mapped, direct or buffered. Plain Python.

Mapped: tensors are views of the page cache, nothing is read that is there already. Direct: past the page cache into
memory of our own, at the disk's rate. Buffered: through the page cache into memory of our own, for files that can
neither be mapped safely nor read directly. `LADING_READ=mapped`, `direct` or `buffered` forces one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from lading.errors import LadingError
from lading.host import FileSystem

Way: TypeAlias = Literal["mapped", "direct", "buffered"]
Use: TypeAlias = Literal["views", "once", "again", "stream"]

SMALL_BYTES = 1 << 20
RESIDENT_SHARE = 0.05
"""From this share in the page cache on, direct reads lose: what is there would be read again."""
MEMORY_SHARE = 0.8
"""Of the free memory; a file that is larger is mapped, so that the kernel can give pages back."""


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        nbytes: that are wanted of the file.
        resident: share of the file that is in the page cache, from 0 to 1.
        file_system: where the file lies.
        available: bytes of memory that are free.
        use: "views" if tensors may be views of the file, "once" if its bytes go elsewhere, "again" if single tensors
            are read again and again, "stream" if all of them are, under a limit that the page cache must not break.
    """

    nbytes: int
    resident: float
    file_system: FileSystem
    available: int
    use: Use = "views"


@dataclass(frozen=True)
class Choice:
    """A way and why it was chosen."""

    way: Way
    reason: str

    def __str__(self) -> str:
        return f"{self.way}: {self.reason}"


def choose_way(facts: Facts) -> Choice:
    """Return the fastest safe way to read a file.

    >>> print(choose_way(Facts(nbytes=4_000_000_000, resident=0.0, file_system="local", available=16_000_000_000)))
    direct: 0% in the page cache
    """
    resident = f"{facts.resident:.0%} in the page cache"
    roomy = fits(facts.nbytes, facts.available)
    if facts.file_system == "network":
        return Choice("buffered", "a network file system")
    if facts.nbytes < SMALL_BYTES:
        return Choice("buffered", "a small file")
    if facts.use == "stream":
        return Choice("buffered" if facts.resident >= 0.95 or facts.file_system == "memory" else "direct", resident)
    if facts.use == "again":
        return Choice("buffered", "read again and again") if roomy else Choice("direct", "too large for the page cache")
    if facts.file_system == "memory":
        return Choice("mapped" if facts.use == "views" else "buffered", "a file system in memory")
    if facts.resident >= RESIDENT_SHARE:
        return Choice("mapped" if facts.use == "views" else "buffered", resident)
    if facts.use == "views" and not roomy:
        return Choice("mapped", "too large for the free memory")
    return Choice("direct", resident)


def fits(nbytes: int, available: int) -> bool:
    """Tell whether so many bytes may be read into memory of our own."""
    return nbytes <= MEMORY_SHARE * available


def forced_way() -> Way | None:
    """Return the way that the environment variable `LADING_READ` forces, or None.

    Raises:
        LadingError: there is no such way.
    """
    way = os.environ.get("LADING_READ")
    if way is not None and way not in get_args(Way):
        raise LadingError(f"LADING_READ={way!r} is no way to read: use one of {', '.join(get_args(Way))}")
    return cast("Way | None", way)
