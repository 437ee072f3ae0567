"""Adapters that were merged into weights of which only a copy is in memory: what they changed would be lost."""

from __future__ import annotations

import torch

from lading.errors import LadingError


def require_unmerged(model: torch.nn.Module, part: torch.nn.Module) -> None:
    """Refuse a part of a model that PEFT has merged adapters into.

    Raises:
        LadingError: it has.
    """
    if getattr(part, "merged", False):
        raise LadingError(
            f"adapters are merged into {type(model).__name__}, whose true weights are elsewhere until they compute: "
            "unmerge them (unfuse_lora) and let them run beside the weights"
        )
