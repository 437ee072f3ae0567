"""Bytes on disk to tensors. Knows no model.

Headers, inventories and hashes are plain Python; torch is imported when the first tensor is made.
"""

from lading.checkpoint.disk_map import DiskMap
from lading.checkpoint.files import CheckpointPath
from lading.checkpoint.header import FileInventory, FileStamp, TensorInfo
from lading.checkpoint.inventory import Checkpoint, hash_model_file, open_checkpoint, read_inventory
from lading.checkpoint.reader import FileReader
from lading.checkpoint.state_dict import load_state_dict, read_state_dict

__all__ = [
    "Checkpoint",
    "CheckpointPath",
    "DiskMap",
    "FileInventory",
    "FileReader",
    "FileStamp",
    "TensorInfo",
    "hash_model_file",
    "load_state_dict",
    "open_checkpoint",
    "read_inventory",
    "read_state_dict",
]
