"""Small networks of random weights, in files as the world writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lading.catalog import find_architecture
from lading.catalog.construction import build_on_meta, network_shapes


@dataclass(frozen=True)
class Case:
    """A network in a file.

    Attributes:
        layout: of the file.
        prefix: before every name in it.
    """

    family: str
    name: str
    layout: str
    config: dict[str, Any]
    prefix: str = ""
    suffix: str = ".safetensors"


CLIP = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 64} | {
    "feed_forward_proj": "gated-gelu"
}
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
WAN = {"num_attention_heads": 1, "attention_head_dim": 128, "in_channels": 4, "out_channels": 4} | {
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
}
WAN_VAE: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1} | {
    "temperal_downsample": [False],
}
Z_IMAGE = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 8, "axes_dims": [4, 6, 6]} | {
    "in_channels": 4
}
QWEN_TEXT = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
QWEN_3 = {**QWEN_TEXT, "head_dim": 128}
QWEN_VL = {
    "text_config": {**QWEN_TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
    "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    | {"out_hidden_size": 256, "patch_size": 14, "fullatt_block_indexes": [0]},
    "tie_word_embeddings": False,
}
FLUX = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2} | {
    "in_channels": 8,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}
QWEN_IMAGE = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 16} | {
    "out_channels": 4,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
SD3 = {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 1} | {
    "attention_head_dim": 64,
    "caption_projection_dim": 64,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
    "sample_size": 8,
    "qk_norm": "rms_norm",
}
CASES = {
    "FLUX.1": Case("flux", "diffusers.FluxTransformer2DModel", "original", FLUX),
    "FLUX.1 with a prefix": Case(
        "flux", "diffusers.FluxTransformer2DModel", "original", FLUX, "model.diffusion_model."
    ),
    "Wan": Case("wan", "diffusers.WanTransformer3DModel", "original", WAN),
    "Wan as .pth": Case("wan", "diffusers.WanTransformer3DModel", "original", WAN, suffix=".pth"),
    "Wan's autoencoder as .pth": Case("wan", "diffusers.AutoencoderKLWan", "original", WAN_VAE, suffix=".pth"),
    "Z-Image with a prefix": Case(
        "z_image", "diffusers.ZImageTransformer2DModel", "original", Z_IMAGE, "model.diffusion_model."
    ),
    "Qwen-Image with a prefix": Case(
        "qwen_image", "diffusers.QwenImageTransformer2DModel", "diffusers", QWEN_IMAGE, "model.diffusion_model."
    ),
    "blockwise ControlNet": Case(
        "qwen_image",
        "lading.models.QwenImageBlockwiseControlNet",
        "diffsynth",
        {"num_layers": 2, "dim": 16, "condition_channels": 8},
    ),
    "SD3": Case("sd3", "diffusers.SD3Transformer2DModel", "original", SD3, "model.diffusion_model."),
    "UNet": Case("stable_diffusion", "diffusers.UNet2DConditionModel", "original", UNET, "model.diffusion_model."),
    "ae": Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", {**VAE, "latent_channels": 16}),
    "T5": Case("t5", "transformers.T5EncoderModel", "hub", T5),
    "UMT5 as .pth": Case("t5", "transformers.UMT5EncoderModel", "original", T5, suffix=".pth"),
    "CLIP": Case("clip", "transformers.CLIPTextModel", "hub (text_model. prefix)", CLIP),
    "OpenCLIP": Case(
        "clip",
        "transformers.CLIPTextModelWithProjection",
        "original",
        {**CLIP, "projection_dim": 128},
        "conditioner.embedders.1.model.",
    ),
    "Qwen2.5-VL": Case(
        "qwen", "transformers.Qwen2_5_VLForConditionalGeneration", "hub (before transformers 4.52)", QWEN_VL
    ),
}


def random_weights(case: Case, dtype: torch.dtype = torch.float32, seed: int = 2) -> dict[str, torch.Tensor]:
    """Weights for a network, in its own names; tied ones are one tensor."""
    network = network_shapes(build_on_meta(case.name, case.config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) / 8 for name, shape in network.shapes.items()}
    return {name: tensors[network.tied.get(name, (name,))[0]] for name in tensors}


def write(folder: Path, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, torch.Tensor]]:
    """A network of random weights in the layout of a case: the file, and the weights in the network's own names."""
    tensors = random_weights(case, dtype)
    file = folder / f"model{case.suffix}"
    save(file, in_layout(case, tensors))
    return file, tensors


def in_layout(case: Case, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's weights as a file of this layout holds them."""
    once = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    tensors = {name: tensor for name, tensor in tensors.items() if once[id(tensor)] == name}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    key_map = find_architecture(case.family, case.name).key_map(case.layout, shapes)
    stored = tensors.items() if key_map is None else key_map.inverse.tensors(tensors)
    return {case.prefix + name: tensor.clone().contiguous() for name, tensor in stored}


def save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
