"""LoRA on a network, by PEFT: added, saved in the layouts that others read, loaded."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from lading.catalog.registry import architecture_of
from lading.errors import ComponentError, LadingError
from lading.training.durable import write_tensors
from lading.training.kohya import to_kohya

ADAPTER = "default"
_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's config in the file. Source: diffusers/loaders/lora_base.py."""


def add_lora(
    module: torch.nn.Module,
    rank: int = 8,
    alpha: float | None = None,
    target_modules: Iterable[str] | str | None = None,
    dropout: float = 0.0,
    name: str = ADAPTER,
) -> dict[str, torch.nn.Parameter]:
    """Add trainable adapters to a network, in float32 whatever its dtype, and return them by name.

    What was trainable before stays so. The adapter's output is cast back to the layer's dtype, so that activations keep
    theirs. An adapter that was just added changes nothing: its second matrix is zero.

    Args:
        rank: of the adapters.
        alpha: their strength is alpha / rank; None is the rank.
        target_modules: names, or ends of names, of the layers to adapt, or a pattern for whole names; None is what the
            catalog says of the network's class.
        dropout: of the adapters' input, while training.
        name: of the adapter.

    Raises:
        ComponentError: the catalog has no default for this class, or no layer is of these names.

    >>> import lading
    >>> unet = lading.load_component("shapes", "unet")
    >>> lading.freeze(unet)
    >>> adapters = lading.add_lora(unet, rank=4)
    >>> len(adapters), {parameter.dtype for parameter in adapters.values()}
    (112, {torch.float32})
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = default_targets(module) if target_modules is None else target_modules
    kept = [parameter for parameter in module.parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type] # it takes any number
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=dropout,
        init_lora_weights=True,
    )
    network: Any = module
    try:
        if hasattr(network, "add_adapter") and hasattr(network, "_hf_peft_config_loaded"):
            network.add_adapter(config, adapter_name=name)  # diffusers notes it, for what it does with adapters later
        else:
            inject_adapter_in_model(config, module, adapter_name=name)
    except ValueError as error:
        raise ComponentError(f"{type(module).__name__} takes no adapters: {error}") from error
    added = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for attribute in layer.adapter_layer_names:
            holder = getattr(layer, attribute, {})
            if name in holder:
                # PEFT leaves them in the layer's dtype, in which small steps round to nothing.
                holder[name].to(torch.float32)
                for leaf, parameter in holder[name].named_parameters():
                    added[f"{path}.{attribute}.{name}.{leaf}"] = parameter
    for parameter in kept:
        parameter.requires_grad_()  # PEFT freezes all that is no adapter
    return added


def default_targets(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the layers of a network that a LoRA changes by default, as the catalog says.

    Raises:
        ComponentError: it says nothing of this class.
    """
    known = architecture_of(type(module))
    if known is not None and known[1].lora_targets:
        return known[1].lora_targets
    raise ComponentError(
        f"the catalog names no layers of {type(module).__name__} for LoRA: give target_modules, such as "
        '["to_q", "to_k", "to_v", "to_out.0"]'
    )


def lora_state(module: torch.nn.Module, name: str = ADAPTER) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by PEFT's names, such as "block.to_q.lora_A.weight".

    Raises:
        LadingError: the network has no such adapter.
    """
    from peft import get_peft_model_state_dict

    if name not in getattr(module, "peft_config", {}):
        raise LadingError(f"{type(module).__name__} has no adapter {name!r}: add one with add_lora")
    return dict(get_peft_model_state_dict(module, adapter_name=name))


def save_lora(
    module: torch.nn.Module,
    file: str | os.PathLike[str],
    component: str | None = None,
    name: str = ADAPTER,
    layout: Literal["diffusers", "kohya"] = "diffusers",
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write an adapter as safetensors, whole or not at all.

    `pipeline.load_lora_weights` of diffusers reads both layouts, casts the adapter to the network's dtype, and draws
    what the network draws with it in that dtype, bit for bit.

    Args:
        component: what the pipeline calls the network; None is "unet" for UNets and "transformer" for all else.
        name: of the adapter.
        layout: "diffusers", or "kohya" for the programs that read that, where the catalog knows it.
        tensors: the adapter's, by the names of the network's parameters, where they are not to be its own, such as
            their average.

    Raises:
        LadingError: the network has no such adapter, or the layout is none for it.
    """
    path = Path(file)
    component = component or ("unet" if "UNet" in type(module).__name__ else "transformer")
    state = lora_state(module, name)
    if tensors is not None:
        state = {key: tensors[_parameter_name(key, name)] for key in state}
    adapted: Any = module
    config = adapted.peft_config[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "kohya":
        strength = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        write_tensors(path, to_kohya(module, state, strength))
    elif layout == "diffusers":
        stated = {f"{component}.{key}": value for key, value in _stated(config).items()}
        prefixed = {f"{component}.{key}": tensor for key, tensor in state.items()}
        write_tensors(path, prefixed, {_METADATA: json.dumps(stated, indent=2, sort_keys=True)})
    else:
        raise LadingError(f"{layout!r} is no layout for adapters: use diffusers or kohya")
    return path


def _parameter_name(key: str, name: str) -> str:
    """From "to_q.lora_A.weight" to "to_q.lora_A.default.weight"."""
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.{name}.{leaf}"


def _stated(config: Any) -> dict[str, Any]:
    """An adapter's config as JSON."""
    stated = config.to_dict()
    return {key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in stated.items()}
