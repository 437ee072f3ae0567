"""Key maps against diffusers' own converters: the same names, and bit for bit the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as converters

from lading.catalog import find_architecture
from lading.catalog.construction import build_on_meta, network_shapes
from tests.catalog.networks import shallow

Tensors = dict[str, torch.Tensor]


def small_unet(linear: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "use_linear_projection": linear,
    }
    sized = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 56,
    }
    return {**config, **sized} if linear else config


def small_vae(channels: int) -> dict[str, Any]:
    return {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": channels,
    }


def small(family: str, name: str, published: str, **changes: Any) -> dict[str, Any]:
    return {**shallow(dict(find_architecture(family, name).published[published])), **changes}


H3 = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "hidden_size": 24,
    "num_layers": 2,
    "ffn_dim": 8,
    "text_dim": 8,
    "time_embed_hidden_dim": 8,
    "time_embed_dim": 8,
    "rope_freq_dim": 2,
}
CASES: dict[str, tuple[str, str, str, dict[str, Any], Callable[[Tensors, dict[str, Any]], Tensors]]] = {
    "Stable Diffusion UNet": (
        "stable_diffusion",
        "diffusers.UNet2DConditionModel",
        "model.diffusion_model.",
        small_unet(False),
        lambda tensors, config: converters.convert_ldm_unet_checkpoint(tensors, config),
    ),
    "SDXL UNet": (
        "stable_diffusion",
        "diffusers.UNet2DConditionModel",
        "model.diffusion_model.",
        small_unet(True),
        lambda tensors, config: converters.convert_ldm_unet_checkpoint(tensors, config),
    ),
    "autoencoder": (
        "autoencoder_kl",
        "diffusers.AutoencoderKL",
        "first_stage_model.",
        small_vae(4),
        lambda tensors, config: converters.convert_ldm_vae_checkpoint(tensors, config),
    ),
    "FLUX.1": (
        "flux",
        "diffusers.FluxTransformer2DModel",
        "",
        {"joint_attention_dim": 8, "pooled_projection_dim": 8, "guidance_embeds": True}
        | {"num_layers": 2, "num_single_layers": 2},
        lambda tensors, _: converters.convert_flux_transformer_checkpoint_to_diffusers(tensors),
    ),
    "FLUX.2": (
        "flux2",
        "diffusers.Flux2Transformer2DModel",
        "",
        {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 8, "in_channels": 8}
        | {"num_layers": 2, "num_single_layers": 2, "axes_dims_rope": (4, 4, 4, 4)},
        lambda tensors, _: converters.convert_flux2_transformer_checkpoint_to_diffusers(tensors),
    ),
    "Z-Image": (
        "z_image",
        "diffusers.ZImageTransformer2DModel",
        "",
        {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 8, "axes_dims": [4, 6, 6]},
        lambda tensors, _: converters.convert_z_image_transformer_checkpoint_to_diffusers(tensors),
    ),
    "Wan": (
        "wan",
        "diffusers.WanTransformer3DModel",
        "",
        small("wan", "diffusers.WanTransformer3DModel", "Wan-AI/Wan2.1-T2V-1.3B", num_attention_heads=1, ffn_dim=16)
        | {"text_dim": 8, "image_dim": 8, "added_kv_proj_dim": 128},
        lambda tensors, _: converters.convert_wan_transformer_to_diffusers(tensors),
    ),
    "Wan VACE": (
        "wan",
        "diffusers.WanVACETransformer3DModel",
        "",
        small("wan", "diffusers.WanVACETransformer3DModel", "Wan-AI/Wan2.1-VACE-14B", num_attention_heads=1, ffn_dim=16)
        | {"text_dim": 8},
        lambda tensors, _: converters.convert_wan_transformer_to_diffusers(tensors),
    ),
    "Wan autoencoder": (
        "wan",
        "diffusers.AutoencoderKLWan",
        "",
        {"base_dim": 8},
        lambda tensors, _: converters.convert_wan_vae_to_diffusers(tensors),
    ),
    "Stable Diffusion 3.5": (
        "sd3",
        "diffusers.SD3Transformer2DModel",
        "",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "joint_attention_dim": 8}
        | {"caption_projection_dim": 16, "pooled_projection_dim": 8, "pos_embed_max_size": 4}
        | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        lambda tensors, _: converters.convert_sd3_transformer_checkpoint_to_diffusers(tensors),
    ),
    "HunyuanVideo": (
        "hunyuan_video",
        "diffusers.HunyuanVideoTransformer3DModel",
        "",
        {"num_layers": 2, "num_single_layers": 2, "text_embed_dim": 8, "pooled_projection_dim": 8},
        lambda tensors, _: converters.convert_hunyuan_video_transformer_to_diffusers(tensors),
    ),
    "Krea 2": (
        "krea2",
        "diffusers.Krea2Transformer2DModel",
        "",
        {"num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "attention_head_dim": 16}
        | {"axes_dims_rope": (4, 6, 6), "text_hidden_dim": 16, "text_num_attention_heads": 1, "intermediate_size": 8}
        | {"text_num_key_value_heads": 1, "text_intermediate_size": 8, "num_text_layers": 2},
        lambda tensors, _: converters.convert_krea2_transformer_checkpoint_to_diffusers(tensors),
    ),
    "Wan-Animate-2": (
        "wan",
        "diffusers.WanAnimate2Transformer3DModel",
        "",
        {"dim": 128, "num_heads": 1, "ffn_dim": 16, "num_layers": 2, "text_dim": 8},
        lambda tensors, _: converters.convert_wan_animate_2_transformer_to_diffusers(tensors),
    ),
    "MiniMax-H3": (
        "minimax",
        "diffusers.MiniMaxH3Transformer3DModel",
        "",
        H3,
        lambda tensors, config: converters.convert_minimax_h3_transformer_checkpoint_to_diffusers(
            tensors, config, qkv_layout="interleaved"
        ),
    ),
    "MiniMax-H3 (stacked)": (
        "minimax",
        "diffusers.MiniMaxH3Transformer3DModel",
        "",
        H3,
        lambda tensors, config: converters.convert_minimax_h3_transformer_checkpoint_to_diffusers(tensors, config),
    ),
    "LTX-Video": (
        "ltx",
        "diffusers.LTXVideoTransformer3DModel",
        "",
        {"attention_head_dim": 2, "cross_attention_dim": 64, "num_layers": 2, "caption_channels": 8},
        lambda tensors, _: converters.convert_ltx_transformer_checkpoint_to_diffusers(tensors),
    ),
    "LTX-2": (
        "ltx",
        "diffusers.LTX2VideoTransformer3DModel",
        "",
        {"attention_head_dim": 2, "cross_attention_dim": 64, "num_layers": 2, "caption_channels": 8}
        | {"audio_attention_head_dim": 2, "audio_cross_attention_dim": 64},
        lambda tensors, _: converters.convert_ltx2_transformer_to_diffusers(tensors),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layout_is_read_as_diffusers_converts_it(case: str) -> None:
    family, name, prefix, config, convert = CASES[case]
    architecture = find_architecture(family, name)
    network = build_on_meta(name, config)
    shapes = network_shapes(network).shapes
    generator = torch.Generator().manual_seed(1)
    # One column of each matrix is enough where diffusers takes the number of rows for granted.
    sizes = (
        {key: (*shape[:1], *(1 for _ in shape[1:])) for key, shape in shapes.items()}
        if case in ("FLUX.1", "HunyuanVideo")
        else shapes
    )
    tensors = {key: torch.randn(size, generator=generator) for key, size in sizes.items()}
    key_map = architecture.key_map("original (stacked)" if "stacked" in case else "original", shapes)
    assert key_map is not None
    in_file = {prefix + key: tensor.contiguous() for key, tensor in key_map.inverse.tensors(tensors)}
    theirs = convert(dict(in_file), dict(getattr(network, "config", config)))
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("projection", [True, False])
def test_open_clip_is_read_as_diffusers_converts_it(projection: bool) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    size = {"hidden_size": 1280, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 20}
    config = {**size, "vocab_size": 16, "max_position_embeddings": 8, "projection_dim": 1280}
    name = f"transformers.CLIPTextModel{'WithProjection' if projection else ''}"
    architecture = find_architecture("clip", name)
    shapes = network_shapes(build_on_meta(name, config)).shapes
    generator = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    key_map = architecture.key_map("original", shapes)
    assert key_map is not None
    prefix = "conditioner.embedders.1.model."
    in_file = {prefix + key: tensor.contiguous() for key, tensor in key_map.inverse.tensors(tensors)}
    in_file.setdefault(f"{prefix}text_projection", torch.zeros(1280, 1280))
    with torch.device("meta"):
        whole = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    theirs = converters.convert_open_clip_checkpoint(whole, in_file, prefix=prefix)
    for key, tensor in tensors.items():
        assert torch.equal(theirs[key if projection else f"text_model.{key}"], tensor)
