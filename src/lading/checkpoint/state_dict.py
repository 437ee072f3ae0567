"""Checkpoints to state dicts, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.checkpoint.files import CheckpointPath
from lading.checkpoint.header import FileInventory, TensorInfo
from lading.checkpoint.inventory import Checkpoint, open_checkpoint
from lading.checkpoint.reader import FileReader, cast_tensor, named_dtype, reading_way
from lading.checkpoint.torch_file import unwrap
from lading.errors import CheckpointError, LadingError

if TYPE_CHECKING:
    import torch


def load_state_dict(
    path: CheckpointPath,
    torch_dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    pin_memory: bool = False,
) -> dict[str, torch.Tensor]:
    """Load a checkpoint's tensors by name.

    On the CPU and without a cast, tensors of safetensors files are views of the file: loading takes no memory until
    they are touched, and writing to them never reaches the file.

    Args:
        path: a file, a list of files merged in order, a folder, a glob or an `index.json`.
        torch_dtype: floating-point tensors are cast to it; others keep theirs. None casts nothing.
        device: where the tensors go.
        pin_memory: copy the tensors to page-locked memory, from which a GPU is fed fastest.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> state_dict = lading.load_state_dict(lading.shipped_model() / "vae", torch_dtype="float32")
    >>> state_dict["decoder.conv_out.bias"].dtype, state_dict["decoder.conv_out.bias"].shape
    (torch.float32, torch.Size([3]))
    """
    checkpoint = open_checkpoint(path)
    return read_state_dict(checkpoint, None if torch_dtype is None else named_dtype(torch_dtype), device, pin_memory)


def read_state_dict(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    pin_memory: bool = False,
) -> dict[str, torch.Tensor]:
    """Load the tensors of an open checkpoint; see `load_state_dict`."""
    import torch

    if pin_memory and not torch.accelerator.is_available():
        raise LadingError("pin_memory=True needs an accelerator that torch can use: there is none here")
    names_by_file: dict[Path, list[str]] = {}
    for name, info in checkpoint.items():
        names_by_file.setdefault(info.file, []).append(name)
    state_dict: dict[str, torch.Tensor] = {}
    for inventory in checkpoint.inventories:
        names = names_by_file.get(inventory.file, [])
        tensors = _file_tensors(inventory, {name: checkpoint[name] for name in names})
        for name in names:
            tensor = cast_tensor(tensors.pop(name), dtype, device)
            state_dict[name] = tensor.pin_memory() if pin_memory and tensor.device.type == "cpu" else tensor
    return {name: state_dict[name] for name in checkpoint}


def _file_tensors(inventory: FileInventory, infos: dict[str, TensorInfo]) -> dict[str, torch.Tensor]:
    if inventory.format == "safetensors":
        reader = FileReader(inventory, reading_way())
        tensors = {name: reader.tensor(info) for name, info in infos.items()}
        reader.close()
        return tensors
    return _torch_tensors(inventory)


def _torch_tensors(inventory: FileInventory) -> dict[str, torch.Tensor]:
    import torch

    try:
        root = torch.load(inventory.file, map_location="cpu", weights_only=True, mmap=inventory.format == "torch zip")
    except Exception as error:  # noqa: BLE001 - torch raises what its unpickler meets
        raise CheckpointError(f"{inventory.file}: torch cannot load it as weights: {error}") from None
    return dict(_flat(unwrap(root), ""))


def _flat(root: Mapping[Any, Any], prefix: str) -> list[tuple[str, torch.Tensor]]:
    import torch

    items: list[tuple[str, torch.Tensor]] = []
    for name, value in root.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            items.append((prefix + name, value))
        elif isinstance(name, str) and isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{name}.")
    return items
