"""Example calls of networks that the catalog knows: a plan is made with them before the first real call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from lading.catalog.architecture import Extent, InputSpec
from lading.catalog.registry import find_architecture
from lading.catalog.structure import shipped_signatures
from lading.memory.management import Examples

SMALLEST = Extent(height=64, width=64, tokens=8)
"""A small call: what it does not fit into, no call fits into."""


def example_call(model: torch.nn.Module, extent: Extent = SMALLEST) -> Examples:
    """Return a call of a network, with tensors on the meta device; nothing for classes that the catalog lacks."""
    config = getattr(model, "config", None)
    name = f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"
    family = next((signature.family for signature in shipped_signatures() if signature.model_class == name), None)
    if family is None or config is None:
        return {}
    example_inputs = find_architecture(family, name).example_inputs
    if example_inputs is None:
        return {}
    dtype = _most_common_dtype(model)
    inputs = example_inputs(config if isinstance(config, Mapping) else config.to_dict(), extent)
    return {"forward": ((), {argument: _tensors(value, dtype) for argument, value in inputs.items()})}


def _most_common_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the dtype of most floating-point elements; some classes keep a few in float32."""
    counts = Counter[torch.dtype]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def _tensors(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, InputSpec):
        stated: torch.dtype = getattr(torch, tree.dtype)
        return torch.empty(tree.shape, dtype=dtype if stated.is_floating_point else stated, device="meta")
    if isinstance(tree, dict):
        return {key: _tensors(value, dtype) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_tensors(value, dtype) for value in tree]
    if isinstance(tree, tuple) and any(isinstance(value, InputSpec) for value in tree):
        return tuple(_tensors(value, dtype) for value in tree)
    return tree
