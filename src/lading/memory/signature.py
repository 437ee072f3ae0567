"""What a call's memory depends on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten


@dataclass(frozen=True)
class Signature:
    """A call's arguments, as far as they tell what it takes.

    Attributes:
        kinds: whether a backward pass follows; their structure, the dtype and rank of each tensor, the type of
            everything else.
        sizes: of all tensors, axis by axis, and all whole numbers.
    """

    kinds: tuple[Any, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], backward: bool = False) -> Signature:
        """Return the signature of a call."""
        values, structure = tree_flatten((args, dict(kwargs)))
        kinds: list[Any] = [backward, str(structure)]
        sizes: list[int] = []
        for value in values:
            if isinstance(value, torch.Tensor):
                kinds.append((value.dtype, value.dim()))
                sizes += value.shape
            elif isinstance(value, int) and not isinstance(value, bool):
                kinds.append(int)
                sizes.append(value)
            else:
                kinds.append(value if isinstance(value, (bool, str)) else type(value))
        return cls(tuple(kinds), tuple(sizes))

    def covers(self, other: Signature) -> bool:
        """Whether a call of this signature takes at least what one of the other takes: nothing of it is smaller."""
        return self.kinds == other.kinds and all(
            bound >= size for bound, size in zip(self.sizes, other.sizes, strict=True)
        )
