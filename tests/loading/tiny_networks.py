"""Denoisers of several families, so small that they run in a moment: real classes, random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from lading.catalog.architecture import Architecture
from lading.catalog.construction import build_on_meta, network_shapes
from lading.loading.lora_networks import AdaptedNetwork
from tests.catalog.networks import architectures
from tests.lora_files import Shape

ARCHITECTURES = architectures()


def tiny_flux() -> Any:
    torch.manual_seed(1)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def tiny_qwen() -> Any:
    torch.manual_seed(1)
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def tiny_wan() -> Any:
    torch.manual_seed(1)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    ).eval()


def tiny_z_image() -> Any:
    torch.manual_seed(1)
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
    ).eval()


def tiny_unet(context: int, levels: tuple[bool, ...] = (False, True, True), sized: bool = True) -> Any:
    """Levels with attention or without; Stable Diffusion XL's parts, or not."""
    torch.manual_seed(1)
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels))
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64)[: len(levels)],
        down_block_types=down,
        up_block_types=up,
        layers_per_block=2,
        cross_attention_dim=context,
        use_linear_projection=sized,
        attention_head_dim=4,
        norm_num_groups=8,
        **(
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 72,
            }
            if sized
            else {}
        ),
    ).eval()


def tiny_clip(kind: Any = CLIPTextModel, width: int = 24) -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return kind(CLIPTextConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)).eval()


def pipeline_of(kind: Any, **parts: Any) -> Any:
    """A pipeline of these networks and nothing else."""
    parameters = inspect.signature(kind.__init__).parameters
    required = [name for name, one in parameters.items() if name != "self" and one.default is one.empty]
    options = {"requires_safety_checker": False} if "requires_safety_checker" in parameters else {}
    return kind(**dict.fromkeys(required) | parts | options)


def named(network: Any, layout: str, wanted: str = "") -> dict[str, Shape]:
    """Modules of a network as a layout calls them, those with a word in their names."""
    architecture = ARCHITECTURES[f"diffusers.{type(network).__name__}"][1]
    return {name: shape for name, shape in in_layout(network, architecture, layout)[0].items() if wanted in name}


def published(name: str, model: str) -> torch.nn.Module:
    """A published network without memory."""
    return build_on_meta(name, ARCHITECTURES[name][1].published[model])


def in_layout(
    network: torch.nn.Module, architecture: Architecture, layout: str
) -> tuple[dict[str, Shape], Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]]:
    """What a layout calls the layers that a LoRA can change, with their shapes; and how weights come to the network."""
    shapes = network_shapes(network).shapes
    able = {f"{name}.weight" for name in AdaptedNetwork("", network).layers}
    key_map = architecture.key_map(layout, shapes)
    if key_map is None:
        return {name.removesuffix(".weight"): shapes[name] for name in shapes if name in able}, dict
    found = {}
    for step in key_map.inverse.steps(shapes)[0]:
        if len(step.targets) == 1 and able.issuperset(step.sources):
            (shape,) = step.change.shapes([shapes[name] for name in step.sources])
            found[step.targets[0].removesuffix(".weight")] = shape
    return found, lambda tensors: dict(key_map.tensors(tensors))


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_flux(network: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network(
            hidden_states=noise(2, 1, 6, 16),
            encoder_hidden_states=noise(3, 1, 5, 24),
            pooled_projections=noise(4, 1, 8),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.0]),
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(5, 3),
        ).sample
    return output


def run_qwen(network: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network(
            hidden_states=noise(2, 1, 6, 16),
            encoder_hidden_states=noise(3, 1, 5, 24),
            encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.bool),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, 2, 3)]],
        ).sample
    return output


def run_wan(network: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network(
            hidden_states=noise(2, 1, 4, 2, 4, 4),
            encoder_hidden_states=noise(3, 1, 5, 16),
            timestep=torch.tensor([5.0]),
        ).sample
    return output
