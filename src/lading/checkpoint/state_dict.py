"""Checkpoints to state dicts, all at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lading.checkpoint.arena import Scratch
from lading.checkpoint.files import CheckpointPath
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.inventory import Checkpoint, open_checkpoint
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import PIECE_BYTES, OnBytes
from lading.checkpoint.ways import Use
from lading.errors import LadingError

if TYPE_CHECKING:
    import torch

    from lading.checkpoint.dtypes import DtypeOf
    from lading.checkpoint.upload import Upload


def load_state_dict(
    path: CheckpointPath,
    torch_dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    pin_memory: bool = False,
) -> dict[str, torch.Tensor]:
    """Load a checkpoint's tensors by name.

    What is in the page cache is mapped: loading takes no memory, and writing to a tensor never reaches the file. What
    is not is read by several threads past the page cache; a cast happens while the rest is read.

    Args:
        path: a file, a list of files merged in order, a folder, a glob or an `index.json`.
        torch_dtype: floating-point tensors are cast to it; others keep theirs. None casts nothing.
        device: where the tensors go.
        pin_memory: copy the tensors to page-locked memory, from which a GPU is fed fastest: one block of their size,
            held until the last of them is gone.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> state_dict = lading.load_state_dict(lading.shipped_model() / "vae", torch_dtype="float32")
    >>> state_dict["decoder.conv_out.bias"].dtype, state_dict["decoder.conv_out.bias"].shape
    (torch.float32, torch.Size([3]))
    """
    from lading.checkpoint.dtypes import named_dtype

    dtype = None if torch_dtype is None else named_dtype(torch_dtype)
    return read_state_dict(open_checkpoint(path), lambda _: dtype, device, pin_memory)


def read_state_dict(
    checkpoint: Checkpoint,
    dtype_of: DtypeOf | None = None,
    device: str | torch.device = "cpu",
    pin_memory: bool = False,
    on_bytes: OnBytes | None = None,
    meanwhile: Callable[[], None] | None = None,
    use: Use = "views",
) -> dict[str, torch.Tensor]:
    """Load the tensors of an open checkpoint; see `load_state_dict`.

    Args:
        dtype_of: a tensor's name -> the dtype that it gets if it is floating-point; None keeps the stored one.
        on_bytes: told of bytes as they arrive, from several threads.
        meanwhile: called while the files are read.
        use: what the reads are for; see `Facts`. "once" maps no file.
    """
    import torch

    from lading.checkpoint.dtypes import as_stored

    dtype_of = dtype_of or as_stored
    if pin_memory and not torch.accelerator.is_available():
        raise LadingError("pin_memory=True needs an accelerator that torch can use: there is none here")
    by_file: dict[Path, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.items():
        by_file.setdefault(info.file, {})[name] = info
    with _upload_to(device) as upload:
        tensors = _read(checkpoint, by_file, dtype_of, on_bytes, upload, meanwhile, use)
    for name in checkpoint:
        tensors[name] = tensors.pop(name).to(device)
    return _pinned(tensors) if pin_memory and torch.device(device).type == "cpu" else tensors


def _pinned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    from lading.devices import find_device

    accelerator = torch.accelerator.current_accelerator()
    device = None if accelerator is None else find_device(accelerator)
    if device is None:  # torch alone serves it
        return {name: tensors.pop(name).pin_memory() for name in list(tensors)}
    from lading.checkpoint.pinning import pin_tensors

    return pin_tensors(tensors, device)


def _upload_to(device: str | torch.device) -> AbstractContextManager[Upload | None]:
    """The way to a device; none for the CPU and devices that torch alone serves, which take what the CPU has."""
    from lading.devices import find_device

    target = find_device(device)
    if target is None:
        return nullcontext()
    from lading.checkpoint.upload import Upload

    return Upload(target)


def _read(
    checkpoint: Checkpoint,
    by_file: dict[Path, dict[str, TensorInfo]],
    dtype_of: DtypeOf,
    on_bytes: OnBytes | None,
    upload: Upload | None,
    meanwhile: Callable[[], None] | None,
    use: Use,
) -> dict[str, torch.Tensor]:
    """Read all files at once, to the CPU or by an upload."""
    scratch, loadings = Scratch(PIECE_BYTES), []
    inventories = [inventory for inventory in checkpoint.inventories if inventory.file in by_file]
    together = sum(inventory.stamp.nbytes for inventory in inventories)
    tensors: dict[str, torch.Tensor] = {}
    try:
        for inventory in inventories:
            infos = by_file[inventory.file]
            if upload is None:
                loadings.append(FileReader(inventory, use, together).start(infos, dtype_of, on_bytes, scratch))
                continue
            encoded = {name: info for name, info in infos.items() if info.encoding is not None}
            others = {name: info for name, info in infos.items() if info.encoding is None}
            loadings.append(FileReader(inventory, "once").start_on(upload, others, dtype_of, on_bytes))
            if encoded:  # decoded here, and sent when all is there
                loadings.append(FileReader(inventory, "once").start(encoded, dtype_of, on_bytes, scratch))
        if meanwhile is not None:
            meanwhile()
        for loading in loadings:
            tensors.update(loading.wait())
    finally:
        for loading in loadings:
            loading.cancel()
    return tensors
