"""Bytes on disk to tensors. Knows no model.

Headers, inventories and hashes are plain Python; torch is imported when the first tensor is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.checkpoint.convert import convert_checkpoint
    from lading.checkpoint.disk_map import DiskMap
    from lading.checkpoint.files import CheckpointPath
    from lading.checkpoint.header import FileInventory, FileStamp, TensorInfo
    from lading.checkpoint.inventory import Checkpoint, hash_model_file, open_checkpoint, read_inventory
    from lading.checkpoint.reader import FileReader
    from lading.checkpoint.state_dict import load_state_dict, read_state_dict

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.checkpoint.convert": ("convert_checkpoint",),
        "lading.checkpoint.disk_map": ("DiskMap",),
        "lading.checkpoint.files": ("CheckpointPath",),
        "lading.checkpoint.header": ("FileInventory", "FileStamp", "TensorInfo"),
        "lading.checkpoint.inventory": ("Checkpoint", "hash_model_file", "open_checkpoint", "read_inventory"),
        "lading.checkpoint.reader": ("FileReader",),
        "lading.checkpoint.state_dict": ("load_state_dict", "read_state_dict"),
    },
)

__all__ = [
    "Checkpoint",
    "CheckpointPath",
    "DiskMap",
    "FileInventory",
    "FileReader",
    "FileStamp",
    "TensorInfo",
    "convert_checkpoint",
    "hash_model_file",
    "load_state_dict",
    "open_checkpoint",
    "read_inventory",
    "read_state_dict",
]
