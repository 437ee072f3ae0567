"""What the loading path shows: one record for each component."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lading.sizes import format_size
from lading.tables import format_table


@dataclass(frozen=True)
class LoadRecord:
    """How one component came to be.

    Attributes:
        name: the component's name in `model_index.json`.
        loader: the loader that the registry chose.
        model_class: library and class, such as "diffusers.AutoencoderKL".
        files: the files that it was made of.
        tensors: parameters and buffers; 0 for a component without weights.
        nbytes: the bytes that these take.
        dtype: of most of these bytes; None without weights.
        device: where they are; None without weights.
        milliseconds: from its start to the finished object, beside whatever loads at the same time.
    """

    name: str
    loader: str
    model_class: str
    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    dtype: str | None
    device: str | None
    milliseconds: float

    def __str__(self) -> str:
        return "  ".join(self.cells())

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON."""
        return {**vars(self), "files": [str(file) for file in self.files], "milliseconds": round(self.milliseconds, 1)}

    def cells(self) -> tuple[str, ...]:
        """The record as text, one cell for each of `COLUMNS`."""
        files = self.files[0].name if len(self.files) == 1 else f"{len(self.files)} files"
        weights = (str(self.tensors), format_size(self.nbytes), self.dtype or "-", self.device or "-")
        none = ("-", "-", "-", "-")
        return (
            self.name,
            self.loader,
            self.model_class,
            files,
            *(weights if self.tensors else none),
            f"{self.milliseconds:.0f}",
        )


COLUMNS = ("component", "loader", "class", "files", "tensors", "bytes", "dtype", "device", "ms")


def format_records(records: Iterable[LoadRecord]) -> str:
    """Write records as a table of aligned columns."""
    return format_table(COLUMNS, [record.cells() for record in records], {"tensors", "bytes", "ms"})
