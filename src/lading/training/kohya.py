"""Adapters in the layout of kohya's programs: one word for each layer, `lora_down`, `lora_up` and `alpha`.

Layers go by the names that the family's original checkpoints have, or by diffusers' own; the catalog says which. Where
an original layer is several of diffusers', their adapters become one of the sum of their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lading.catalog.change import Fuse, Same
from lading.catalog.keymap import Step
from lading.catalog.lora_names import kohya_names
from lading.errors import LadingError
from lading.loading.lora_networks import AdaptedNetwork


def to_kohya(module: torch.nn.Module, state: Mapping[str, torch.Tensor], strength: float) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors as kohya's programs name them.

    Args:
        module: the network.
        state: by PEFT's names, such as "block.to_q.lora_A.weight".
        strength: by which the product of the matrices is multiplied: alpha / rank.

    Raises:
        LadingError: the layout of this network is not known, or adapts a layer that it cannot say.
    """
    pairs = {
        name.removesuffix(".lora_A.weight"): (tensor, state[name.replace(".lora_A.", ".lora_B.")])
        for name, tensor in state.items()
        if name.endswith(".lora_A.weight")
    }
    written: dict[str, torch.Tensor] = {}
    for step in _steps(module):
        layers = [source.removesuffix(".weight") for source in step.sources]
        if not any(layer in pairs for layer in layers):
            continue
        if not isinstance(step.change, (Same, Fuse)) or (isinstance(step.change, Fuse) and step.change.dim != 0):
            raise LadingError(
                f"{layers[0]}: kohya's layout writes this layer otherwise: save the adapter as 'diffusers'"
            )
        down, up = _joined(module, layers, pairs)
        names = kohya_names(step.targets[0].removesuffix(".weight"))
        written |= {names["down"]: down, names["up"]: up, names["alpha"]: torch.tensor(strength * len(down))}
    return written


def _steps(module: torch.nn.Module) -> Sequence[Step]:
    """How the network's weights become those of the layout."""
    network = AdaptedNetwork(type(module).__name__, module)
    architecture = network.known[1] if network.known is not None else None
    if architecture is None or architecture.kohya_layout is None:
        raise LadingError(f"kohya's layout of {network.label} is not known: save the adapter as 'diffusers'")
    config: Any = module.config
    shapes = network.parameters
    key_map = architecture.key_map(architecture.kohya_layout(config), shapes)
    if key_map is None:
        return [Step((name,), (name,), Same()) for name in shapes]
    return key_map.inverse.steps(shapes)[0]


def _joined(
    module: torch.nn.Module, layers: Sequence[str], pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one adapter of those of layers that stand below each other in one; layers without one add nothing."""
    if len(layers) == 1:
        return pairs[layers[0]]
    downs, ups = [], []
    for layer in layers:
        if layer in pairs:
            downs.append(pairs[layer][0])
            ups.append(pairs[layer][1])
        else:
            rows: Any = module.get_submodule(layer)
            ups.append(torch.zeros(rows.out_features, 0))
    whole: torch.Tensor = torch.block_diag(*(up.cpu() for up in ups))  # type: ignore[no-untyped-call] # torch gives none
    return torch.cat(downs), whole
