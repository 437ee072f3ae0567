"""Tensors in page-locked memory, from which a GPU is fed fastest.

They share one block, locked at its exact size: torch's own pinned allocator rounds each tensor up to a power of two.
"""

from __future__ import annotations

import torch

from lading.checkpoint.arena import Arena
from lading.devices import Device

_ALIGNMENT = 64


def pin_tensors(tensors: dict[str, torch.Tensor], device: Device) -> dict[str, torch.Tensor]:
    """Move tensors of the CPU to one pinned block, which is unpinned when the last of the results is gone.

    Args:
        tensors: empty afterwards, so that what nobody else holds is freed.

    Raises:
        LadingError: the system does not allow that much locked memory.
    """
    places: dict[str, int] = {}
    end = 0
    for name, tensor in tensors.items():
        places[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    arena = Arena(0, end)
    arena.at_end(device.pin(arena.view(0, arena.nbytes)))
    pinned = {}
    for name, start in places.items():
        tensor = tensors.pop(name)
        if tensor.nbytes:
            target = arena.tensor(tensor.dtype, start, start + tensor.nbytes).view(tensor.shape)
            pinned[name] = target.copy_(tensor)
        else:
            pinned[name] = tensor
    return pinned
