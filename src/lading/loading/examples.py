"""Example calls of networks that the catalog knows: a plan is made with them before the first real call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from lading.catalog.architecture import Extent
from lading.catalog.construction import make_inputs
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
    architecture = find_architecture(family, name)
    if architecture.example_inputs is None or any(getattr(model, one, None) is None for one in architecture.lent):
        return {}
    dtype = _most_common_dtype(model)
    inputs = architecture.example_inputs(config if isinstance(config, Mapping) else config.to_dict(), extent)
    return {"forward": ((), make_inputs(inputs, dtype))}


def _most_common_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the dtype of most floating-point elements; some classes keep a few in float32."""
    counts = Counter[torch.dtype]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32
