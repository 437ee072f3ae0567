"""Every exception that lading raises on purpose.

LadingError
├── CheckpointError       a file is damaged, unsafe, incomplete or not what it claims
├── IdentificationError   what a checkpoint is cannot be told
├── DownloadError         a hub could not give what was asked
├── MemoryLimitError      a limit is too small; `.minimum` says what would do, in bytes
├── ShapeError            a size that the model cannot take
└── ComponentError        a component of a pipeline cannot be found or built

A message has three parts: what is wrong, where, and what to do.
"""

from __future__ import annotations


class LadingError(Exception):
    """Base of every exception that lading raises on purpose."""


class CheckpointError(LadingError):
    """A checkpoint file is damaged, unsafe, incomplete or not what it claims to be."""


class IdentificationError(LadingError):
    """What a checkpoint is cannot be told."""


class DownloadError(LadingError):
    """A hub could not give what was asked."""


class MemoryLimitError(LadingError):
    """A memory limit is too small.

    Attributes:
        minimum: the smallest limit that works, in bytes.
    """

    def __init__(self, message: str, minimum: int) -> None:
        super().__init__(message)
        self.minimum = minimum


class ShapeError(LadingError):
    """A size that the model cannot take."""


class ComponentError(LadingError):
    """A component of a pipeline cannot be found or built."""
