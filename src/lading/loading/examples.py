"""Example calls of networks that the catalog knows: a plan is made with them before the first real call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from lading.catalog.architecture import Architecture, Extent
from lading.catalog.construction import make_inputs
from lading.catalog.registry import architecture_of
from lading.catalog.shapes import Shapes
from lading.memory.management import Examples

SMALLEST = Extent(height=64, width=64, tokens=8)
"""A small call: what it does not fit into, no call fits into."""


def example_call(model: torch.nn.Module, extent: Extent = SMALLEST) -> Examples:
    """Return a call of a network, with tensors on the meta device; nothing for classes that the catalog lacks."""
    known = architecture_of(type(model))
    if known is None:
        return {}
    _, architecture = known
    if architecture.example_inputs is None or any(getattr(model, one, None) is None for one in architecture.lent):
        return {}
    inputs = architecture.example_inputs(_config(model, architecture), extent)
    return {"forward": ((), make_inputs(inputs, _most_common_dtype(model)))}


def _config(model: torch.nn.Module, architecture: Architecture) -> Mapping[str, Any]:
    """The network's config; as its shapes tell it where the class keeps none."""
    config = getattr(model, "config", None)
    if config is None:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        return architecture.infer_config(Shapes(shapes))
    return config if isinstance(config, Mapping) else dict(config.to_dict())


def _most_common_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the dtype of most floating-point elements; some classes keep a few in float32."""
    counts = Counter[torch.dtype]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32
