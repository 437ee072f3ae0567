"""A state dict that stays on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lading.checkpoint.files import CheckpointPath
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.inventory import Checkpoint, open_checkpoint
from lading.checkpoint.reader import FileReader
from lading.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class DiskMap(Mapping[str, "torch.Tensor"]):
    """A read-only mapping from names to tensors that reads a tensor each time it is asked for.

    Names, `in`, `len` and iteration read nothing. A tensor that was handed out is the caller's: the map keeps none.

    Args:
        path: a file, a list of files merged in order, a folder, a glob or an `index.json`; or a checkpoint that is
            open.
        device: where tensors go.
        torch_dtype: floating-point tensors are cast to it. None casts nothing.
        state_dict_converter: renames. It is called once with `{name: name}` and returns `{new name: name}`; it may
            drop names, and it cannot compute, as it sees no tensors.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or not a checkpoint, or the converter does not just rename.

    >>> import lading
    >>> on_disk = lading.DiskMap(lading.shipped_model() / "vae", device="cpu")
    >>> on_disk["decoder.conv_in.bias"].dtype
    torch.float16
    """

    def __init__(
        self,
        path: CheckpointPath | Checkpoint,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype | str | None = None,
        state_dict_converter: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        from lading.checkpoint.dtypes import named_dtype

        self.checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        self.device = device
        self.torch_dtype = None if torch_dtype is None else named_dtype(torch_dtype)
        self._readers = {
            inventory.file: FileReader(inventory, use="again") for inventory in self.checkpoint.inventories
        }
        self._sources = {name: name for name in self.checkpoint}
        if state_dict_converter is not None:
            self._sources = self._renamed(state_dict_converter)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(name, self.torch_dtype).to(self.device)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read a tensor to the CPU; a floating-point one is cast to a dtype while it is read.

        Raises:
            CheckpointError: the file has changed or cannot be read.
        """
        info = self.info(name)
        try:
            return self._readers[info.file].tensor(info, dtype)
        except CheckpointError as error:
            raise CheckpointError(f"{error} (it was read for {name})") from None

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor lies and what it is, without reading it."""
        return self.checkpoint[self._sources[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __repr__(self) -> str:
        return f"DiskMap({self.checkpoint})"

    def _renamed(self, convert: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, str]:
        files = ", ".join(str(file) for file in self.checkpoint.files)
        advice = "load the checkpoint with load_state_dict and convert that"
        try:
            renamed = dict(convert(dict(self._sources)))
        except Exception as error:
            raise CheckpointError(
                f"{files}: the state_dict_converter does more than rename ({error}): {advice}"
            ) from error
        strange = [new for new, old in renamed.items() if not isinstance(old, str) or old not in self.checkpoint]
        if strange:
            raise CheckpointError(f"{files}: the state_dict_converter made {strange[0]!r} of no tensor: {advice}")
        return renamed
