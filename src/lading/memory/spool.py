"""Weights that are only in memory, written to temporary files once, so that they can be streamed from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lading.catalog.origin import Origin
from lading.checkpoint.header import FileInventory
from lading.checkpoint.inventory import open_checkpoint
from lading.checkpoint.state_dict import load_state_dict
from lading.errors import LadingError
from lading.memory.image import Weight
from lading.sizes import format_size

_FILE_BYTES = 256 << 20
"""Weights are written and let go in files of about this size, so that little is in memory twice."""


class Spool:
    """Temporary files of weights."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lading-"))
        self.weights: dict[str, Weight] = {}
        self.inventories: list[FileInventory] = []

    def take(self, parameters: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Write parameters, and give back each that is on the disk; what is given back is not kept here.

        Raises:
            LadingError: they cannot be written.
        """
        batch: dict[str, torch.Tensor] = {}
        for name in list(parameters):
            batch[name] = parameters.pop(name).detach().cpu().contiguous()
            if not parameters or sum(tensor.nbytes for tensor in batch.values()) >= _FILE_BYTES:
                self._write(batch)
                while batch:
                    yield batch.popitem()

    def read(self) -> dict[str, torch.Tensor]:
        """Read back all that was written."""
        return dict(load_state_dict([inventory.file for inventory in self.inventories])) if self.inventories else {}

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, batch: dict[str, torch.Tensor]) -> None:
        file = self.folder / f"{len(self.inventories):05d}.safetensors"
        try:
            save_file(batch, file)
        except (OSError, SafetensorError) as error:
            nbytes = sum(tensor.nbytes for tensor in batch.values())
            raise LadingError(
                f"{file}: {format_size(nbytes)} of weights cannot be written: {error}: make room there, or let TMPDIR "
                "name another folder"
            ) from error
        checkpoint = open_checkpoint(file)
        self.inventories += checkpoint.inventories
        self.weights |= {name: Weight(Origin.of(checkpoint[name]), tensor.dtype) for name, tensor in batch.items()}
