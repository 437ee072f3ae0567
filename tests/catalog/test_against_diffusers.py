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


def with_beside(convert: Callable[[Tensors], Tensors], *names: str) -> Callable[[Tensors, dict[str, Any]], Tensors]:
    """A converter that takes tensors for granted that it throws away."""
    return lambda tensors, _: convert({**tensors, **{name: torch.zeros(1) for name in names}})


def flux2_vae(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """As an older autoencoder, after what is different has been put where that has it."""
    older = {
        key.replace("encoder.quant_conv", "quant_conv").replace("decoder.post_quant_conv", "post_quant_conv"): tensor
        for key, tensor in tensors.items()
    }
    norm = {key: older.pop(key) for key in list(older) if key.startswith("bn.")}
    return {**converters.convert_ldm_vae_checkpoint(older, config), **norm}


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
    "Wan-Animate": (
        "wan",
        "diffusers.WanAnimateTransformer3DModel",
        "",
        small("wan", "diffusers.WanAnimateTransformer3DModel", "Wan-AI/Wan2.2-Animate-14B", num_attention_heads=1)
        | {"ffn_dim": 16, "text_dim": 8, "image_dim": 8, "added_kv_proj_dim": 128, "motion_style_dim": 4}
        | {"motion_encoder_dim": 4, "motion_dim": 2, "face_encoder_hidden_dim": 8, "face_encoder_num_heads": 2}
        | {"motion_encoder_channel_sizes": {str(2**power): 2 + power for power in range(2, 11)}},
        lambda tensors, _: converters.convert_wan_transformer_to_diffusers(tensors),
    ),
    "Mochi": (
        "mochi",
        "diffusers.MochiTransformer3DModel",
        "",
        {"num_attention_heads": 1, "attention_head_dim": 8, "pooled_projection_dim": 8, "text_embed_dim": 16}
        | {"time_embed_dim": 8, "in_channels": 2, "num_layers": 48},
        lambda tensors, _: converters.convert_mochi_transformer_checkpoint_to_diffusers(tensors),
    ),
    "Sana": (
        "sana",
        "diffusers.SanaTransformer2DModel",
        "",
        {"num_attention_heads": 2, "num_layers": 2, "num_cross_attention_heads": 1, "cross_attention_head_dim": 64}
        | {"cross_attention_dim": 64, "caption_channels": 8, "in_channels": 4, "out_channels": 4},
        with_beside(converters.convert_sana_transformer_to_diffusers, "pos_embed", "y_embedder.y_embedding"),
    ),
    "DC-AE": (
        "sana",
        "diffusers.AutoencoderDC",
        "",
        {"latent_channels": 4, "downsample_block_type": "Conv", "upsample_block_type": "interpolate"}
        | {f"{half}_block_types": ("ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")}
        | {f"{half}_block_out_channels": (16, 32) for half in ("encoder", "decoder")}
        | {f"{half}_layers_per_block": (1, 2) for half in ("encoder", "decoder")}
        | {f"{half}_qkv_multiscales": ((), (5,)) for half in ("encoder", "decoder")},
        lambda tensors, _: converters.convert_autoencoder_dc_checkpoint_to_diffusers(tensors),
    ),
    "FLUX.2 autoencoder": ("flux2", "diffusers.AutoencoderKLFlux2", "", small_vae(4), flux2_vae),
    "ControlNet": (
        "stable_diffusion",
        "diffusers.ControlNetModel",
        "control_model.",
        {key: value for key, value in small_unet(False).items() if key != "up_block_types"},
        lambda tensors, config: converters.convert_controlnet_checkpoint(tensors, config),
    ),
    "LTX-2 sound": (
        "ltx",
        "diffusers.AutoencoderKLLTX2Audio",
        "audio_vae.",
        {"base_channels": 8, "ch_mult": (1, 2), "num_res_blocks": 1},
        lambda tensors, _: converters.convert_ltx2_audio_vae_to_diffusers(tensors),
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


@pytest.mark.parametrize(
    ("name", "published"),
    [
        *(("diffusers.AutoencoderKLLTXVideo", f"Lightricks/LTX-Video{v}") for v in ("", "-0.9.1", "-0.9.5")),
        ("diffusers.AutoencoderKLLTX2Video", "Lightricks/LTX-2"),
    ],
)
def test_the_blocks_of_films_autoencoders_are_counted_as_diffusers_counts_them(name: str, published: str) -> None:
    architecture = find_architecture("ltx", name)
    shapes = network_shapes(build_on_meta(name, architecture.published[published])).shapes
    tensors = {key: torch.tensor(float(place)) for place, key in enumerate(shapes)}
    width = "encoder.conv_out.conv.weight"  # tells diffusers which version it is
    tensors[width] = torch.zeros(1, shapes[width][1])
    key_map = architecture.key_map("original", shapes)
    assert key_map is not None
    in_file = {f"vae.{key}": tensor for key, tensor in key_map.inverse.tensors(tensors)}
    convert = (
        converters.convert_ltx2_vae_to_diffusers
        if "LTX2" in name
        else converters.convert_ltx_vae_checkpoint_to_diffusers
    )
    theirs = convert(dict(in_file))
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[key], tensors[key]) for key in tensors)


def test_cogvideox_norms_share_a_modulation_by_turns() -> None:
    # As https://github.com/huggingface/diffusers converts it: of twelve parts, three and three to each norm.
    architecture = find_architecture("cogvideox", "diffusers.CogVideoXTransformer3DModel")
    config = shallow(dict(architecture.published["zai-org/CogVideoX-2b"])) | {"num_attention_heads": 1}
    shapes = network_shapes(build_on_meta(architecture.model_class, config)).shapes
    key_map = architecture.key_map("original", shapes)
    assert key_map is not None
    parts = torch.arange(12 * 64.0).reshape(12, 64)
    name = "mixins.adaln_layer.adaLN_modulations.1.1.bias"
    found = dict(key_map.tensors({name: parts.flatten()}))
    assert torch.equal(found["transformer_blocks.1.norm1.linear.bias"], parts[[0, 1, 2, 6, 7, 8]].flatten())
    assert torch.equal(found["transformer_blocks.1.norm2.linear.bias"], parts[[3, 4, 5, 9, 10, 11]].flatten())


@pytest.mark.parametrize(
    ("family", "name", "published", "pairs"),
    [
        (
            "cogvideox",
            "diffusers.CogVideoXTransformer3DModel",
            "zai-org/CogVideoX-5b-I2V",
            {
                "mixins.pos_embed.pos_embedding": "patch_embed.pos_embedding",
                "mixins.patch_embed.text_proj.weight": "patch_embed.text_proj.weight",
                "mixins.adaln_layer.query_layernorm_list.1.weight": "transformer_blocks.1.attn1.norm_q.weight",
                "transformer.layers.1.post_attention_layernorm.bias": "transformer_blocks.1.norm2.norm.bias",
                "transformer.layers.0.mlp.dense_4h_to_h.weight": "transformer_blocks.0.ff.net.2.weight",
                "transformer.final_layernorm.weight": "norm_final.weight",
                "mixins.final_layer.norm_final.weight": "norm_out.norm.weight",
            },
        ),
        (
            "cogvideox",
            "diffusers.AutoencoderKLCogVideoX",
            "zai-org/CogVideoX-2b",
            {
                "decoder.up.0.block.3.conv1.conv.weight": "decoder.up_blocks.3.resnets.3.conv1.conv.weight",
                "decoder.up.3.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
                "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
                "encoder.mid.block_2.norm1.weight": "encoder.mid_block.resnets.1.norm1.weight",
            },
        ),
        (
            "mochi",
            "diffusers.AutoencoderKLMochi",
            "genmo/mochi-1-preview",
            {
                "encoder.layers.0.weight": "encoder.proj_in.weight",
                "encoder.layers.3.stack.5.bias": "encoder.block_in.resnets.2.conv2.conv.bias",
                "encoder.layers.4.layers.0.weight": "encoder.down_blocks.0.conv_in.conv.weight",
                "encoder.layers.6.layers.6.stack.2.weight": "encoder.down_blocks.2.resnets.5.conv1.conv.weight",
                "encoder.layers.5.layers.1.attn_block.norm.bias": "encoder.down_blocks.1.norms.0.norm_layer.bias",
                "encoder.layers.9.attn_block.attn.out.weight": "encoder.block_out.attentions.2.to_out.0.weight",
                "encoder.output_proj.weight": "encoder.proj_out.weight",
                "decoder.blocks.0.0.weight": "decoder.conv_in.weight",
                "decoder.blocks.0.3.stack.0.weight": "decoder.block_in.resnets.2.norm1.norm_layer.weight",
                "decoder.blocks.1.blocks.5.stack.3.weight": "decoder.up_blocks.0.resnets.5.norm2.norm_layer.weight",
                "decoder.blocks.3.proj.bias": "decoder.up_blocks.2.proj.bias",
                "decoder.blocks.4.2.stack.2.weight": "decoder.block_out.resnets.2.conv1.conv.weight",
            },
        ),
        (
            "flux",
            "diffusers.FluxControlNetModel",
            "XLabs-AI/flux-controlnet-canny-diffusers",
            {
                "pos_embed_input.weight": "controlnet_x_embedder.weight",
                "input_hint_block.0.weight": "input_hint_block.conv_in.weight",
                "input_hint_block.12.bias": "input_hint_block.blocks.5.bias",
                "input_hint_block.14.weight": "input_hint_block.conv_out.weight",
                "controlnet_blocks.1.bias": "controlnet_blocks.1.bias",
                "double_blocks.1.img_attn.norm.key_norm.scale": "transformer_blocks.1.attn.norm_k.weight",
                "guidance_in.out_layer.bias": "time_text_embed.guidance_embedder.linear_2.bias",
            },
        ),
    ],
)
def test_names_that_diffusers_scripts_convert_are_read_alike(
    family: str, name: str, published: str, pairs: dict[str, str]
) -> None:
    architecture = find_architecture(family, name)
    shapes = network_shapes(build_on_meta(name, architecture.published[published])).shapes
    key_map = architecture.key_map("original", shapes)
    assert key_map is not None
    in_file = key_map.inverse.names(shapes)
    assert {old: new for old, (new, *_) in in_file.items() if old in pairs} == pairs
    assert key_map.names(in_file).keys() == shapes.keys()


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
