"""Pairs of matrices onto the layers of a network, with PEFT; the network's own weights are not touched."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from lading.loading.lora_conversion import Pair


def inject(module: torch.nn.Module, pairs: Mapping[str, Pair], name: str, by_root: bool) -> None:
    """Add an adapter to layers, frozen and not yet active; they get the dtype and the device of their layer.

    Args:
        pairs: by layer.
        name: of the adapter, which the network must not have yet.
        by_root: whether alpha is divided by the rank's square root.
    """
    by_rank: dict[tuple[int, bool, bool], dict[str, Pair]] = {}
    for layer, pair in pairs.items():
        kind = pair.rank, pair.up_bias is not None, pair.magnitude is not None
        by_rank.setdefault(kind, {})[layer] = pair
    for (rank, has_bias, is_dora), group in by_rank.items():
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=sorted(group),
            use_rslora=by_root,
            use_dora=is_dora,
            lora_bias=has_bias,
            inference_mode=True,
        )
        state = {key: tensor for layer, pair in group.items() for key, tensor in _named(layer, pair)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # several are meant
            warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)  # the state decides
            inject_adapter_in_model(config, module, name, low_cpu_mem_usage=True, state_dict=state)
            left: Any = set_peft_model_state_dict(module, state, name, low_cpu_mem_usage=True)
        assert not left.unexpected_keys, left.unexpected_keys
    for layer, pair in pairs.items():
        adapted: Any = module.get_submodule(layer)
        adapted.lora_alpha[name] = _alpha(pair)
    if hasattr(module, "_hf_peft_config_loaded"):  # by which diffusers and transformers know that there are adapters
        module.__dict__["_hf_peft_config_loaded"] = True
    _describe(module, pairs, name)


def active_adapters(module: torch.nn.Module) -> list[str]:
    """Return the adapters that take part."""
    layers = (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


def adapted_layers(module: torch.nn.Module) -> dict[str, set[str]]:
    """Return the adapters that there are, each with its layers."""
    found: dict[str, set[str]] = {}
    for path, layer in module.named_modules():
        for name in layer.lora_A if isinstance(layer, LoraLayer) else ():
            found.setdefault(name, set()).add(path)
    return found


def activate(module: torch.nn.Module, active: list[str], name: str, scale: float) -> None:
    """Let an adapter take part, beside those that did."""
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter([*active, name], inference_mode=True)
        if isinstance(layer, LoraLayer):
            layer.set_scale(name, scale)


def remove(module: torch.nn.Module, name: str) -> None:
    """Take an adapter away, whether or not all of it is there."""
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.delete_adapter(name)
    module.__dict__.get("peft_config", {}).pop(name, None)


def _named(layer: str, pair: Pair) -> Iterator[tuple[str, torch.Tensor]]:
    """The pair's tensors by the names that PEFT saves them under."""
    yield f"{layer}.lora_A.weight", pair.down
    yield f"{layer}.lora_B.weight", pair.up
    if pair.up_bias is not None:
        yield f"{layer}.lora_B.bias", pair.up_bias
    if pair.magnitude is not None:
        yield f"{layer}.lora_magnitude_vector", pair.magnitude


def _alpha(pair: Pair) -> float:
    return pair.rank if pair.alpha is None else pair.alpha


def _describe(module: torch.nn.Module, pairs: Mapping[str, Pair], name: str) -> None:
    """Let the adapter's config say what was loaded, for those who save it."""
    config: Any = module.peft_config[name]  # type: ignore[index] # PEFT has put it there
    ranks = {layer: pair.rank for layer, pair in pairs.items()}
    alphas = {layer: _alpha(pair) for layer, pair in pairs.items()}
    config.r, config.lora_alpha = (Counter(of.values()).most_common(1)[0][0] for of in (ranks, alphas))
    config.rank_pattern = {f"^{layer}": rank for layer, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {f"^{layer}": alpha for layer, alpha in alphas.items() if alpha != config.lora_alpha}
    config.target_modules = set(pairs)
