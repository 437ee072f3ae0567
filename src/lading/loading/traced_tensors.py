"""Tensors that know what they were computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_iter

_READS = ("item", "__float__")


class TracedTensor(torch.Tensor):
    """A tensor that keeps the names of those that it was computed from, through any function of torch.

    Attributes:
        sources: those names.
        read: names of tensors whose number was taken out of torch; one set for all.
    """

    sources: frozenset[str]
    read: set[str]

    @classmethod
    def of(cls, tensor: torch.Tensor, name: str, read: set[str]) -> TracedTensor:
        """Begin to trace a tensor."""
        traced = tensor.as_subclass(cls)
        traced.sources, traced.read = frozenset((name,)), read
        return traced

    def plain(self) -> torch.Tensor:
        """Return the tensor without its trace."""
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call] # torch's
        inputs = [one for one in tree_iter((args, kwargs)) if isinstance(one, TracedTensor)]
        sources = frozenset[str]().union(*(one.sources for one in inputs))
        if isinstance(result, float) and getattr(func, "__name__", "") in _READS:
            inputs[0].read.update(sources)
        for one in tree_iter(result):
            if isinstance(one, TracedTensor):
                one.sources, one.read = sources, inputs[0].read
        return result
