"""Sana: pictures from prompts with linear attention, and its deep compression autoencoder. https://github.com/NVlabs/Sana"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import (
    Architecture,
    Component,
    Config,
    Extent,
    Family,
    Inputs,
    InputSpec,
    LatentNumbers,
    Repository,
)
from lading.catalog.keymap import KeyMap, Rule, rename, split, squeeze, squeeze_and_split
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, levels

_1600M = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "guidance_embeds": False,
    "qk_norm": None,
}
_600M = {
    **_1600M,
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
_LEVELS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_MULTISCALES = ((),) * 3 + ((5,),) * 3
_DC_AE = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _LEVELS,
    "decoder_block_types": _LEVELS,
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": _MULTISCALES,
    "decoder_qkv_multiscales": _MULTISCALES,
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
_HEAD_DIM = 32


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, patch, _ = shapes.shape("patch_embed.proj.weight")
    block = "transformer_blocks.{n}"
    cross = shapes.size(f"{block}.attn2.to_q.weight")
    heads = 16 if cross % 112 else cross // 112  # of 72 in the small model, of 112 in the others
    return {
        "in_channels": in_channels,
        "out_channels": quotient(shapes.size("proj_out.weight"), patch**2, "channels of a patch"),
        "num_attention_heads": quotient(width, _HEAD_DIM, "heads"),
        "attention_head_dim": _HEAD_DIM,
        "num_layers": shapes.count("transformer_blocks"),
        "num_cross_attention_heads": heads,
        "cross_attention_head_dim": quotient(cross, heads, "width of a head"),
        "cross_attention_dim": shapes.size(f"{block}.attn2.to_k.weight", 1),
        "caption_channels": shapes.size("caption_projection.linear_1.weight", 1),
        "mlp_ratio": shapes.size(f"{block}.ff.conv_point.weight", 1) / width,
        "attention_bias": shapes.has(f"{block}.attn1.to_q.bias"),
        "patch_size": patch,
        "guidance_embeds": shapes.has("time_embed.guidance_embedder.linear_1.weight"),
        "qk_norm": "rms_norm_across_heads" if shapes.has(f"{block}.attn1.norm_q.weight") else None,
    }


def _autoencoder(shapes: Shapes) -> dict[str, Any]:
    levels = range(shapes.count("decoder.up_blocks"))
    # A level of the decoder begins with its upsampling, which the innermost has not.
    layers = [shapes.count(f"decoder.up_blocks.{level}") - (level < len(levels) - 1) for level in levels]
    attends = [shapes.has(f"decoder.up_blocks.{level}.{{n}}.attn.to_q.weight") for level in levels]
    return {
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "attention_head_dim": _HEAD_DIM,
        **_half(shapes, "decoder", "up_blocks", layers, attends),
        **_half(
            shapes,
            "encoder",
            "down_blocks",
            [shapes.count(f"encoder.down_blocks.{level}") - (level < len(levels) - 1) for level in levels],
            [shapes.has(f"encoder.down_blocks.{level}.{{n}}.attn.to_q.weight") for level in levels],
        ),
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    }


def _half(shapes: Shapes, half: str, blocks: str, layers: list[int], attends: list[bool]) -> dict[str, Any]:
    widths, scales = [], []
    for level, attention in enumerate(attends):
        block = f"{half}.{blocks}.{level}.{{n}}"
        widths.append(shapes.size(f"{block}.attn.to_q.weight" if attention else f"{block}.conv1.weight"))
        scale = f"{block}.attn.to_qkv_multiscale.0.proj_in.weight"
        scales.append((shapes.size(scale, 2),) if shapes.has(scale) else ())
    return {
        f"{half}_block_types": tuple("EfficientViTBlock" if attention else "ResBlock" for attention in attends),
        f"{half}_block_out_channels": tuple(widths),
        f"{half}_layers_per_block": tuple(layers),
        f"{half}_qkv_multiscales": tuple(scales),
    }


def _autoencoder_inputs(config: Config, extent: Extent) -> Inputs:
    return {"sample": InputSpec((extent.batch, config["in_channels"], extent.height, extent.width))}


def _inputs(config: Config, extent: Extent) -> Inputs:
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, config["in_channels"], extent.height // 32, extent.width // 32)),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["caption_channels"])),
        "timestep": InputSpec((extent.batch,)),
    }
    return {**inputs, "guidance": InputSpec((extent.batch,))} if config["guidance_embeds"] else inputs


_BLOCK = ("blocks.{n}", "transformer_blocks.{n}")


def _original(shapes: Shapes) -> KeyMap:
    """NVIDIA's own names; where guidance is distilled, time has no module of its own beside it."""
    guided = any(
        shapes.has(f"{name}.weight") for name in ("cfg_embedder.mlp.0", "time_embed.guidance_embedder.linear_1")
    )
    time = "time_embed.timestep_embedder" if guided else "time_embed.emb.timestep_embedder"
    embedders = (("t_embedder", time), ("cfg_embedder", "time_embed.guidance_embedder"))
    file, model = _BLOCK
    pairs = (
        ("scale_shift_table", "scale_shift_table"),
        *((f"attn.{old}", f"attn1.{new}") for old, new in _NORMS),
        *((f"cross_attn.{old}", f"attn2.{new}") for old, new in _NORMS),
        ("attn.proj.{leaf}", "attn1.to_out.0.{leaf}"),
        ("cross_attn.proj.{leaf}", "attn2.to_out.0.{leaf}"),
        ("cross_attn.q_linear.{leaf}", "attn2.to_q.{leaf}"),
        *((f"mlp.{name}_conv.conv.{{leaf}}", f"ff.conv_{name}.{{leaf}}") for name in ("inverted", "depth", "point")),
    )
    rules = [
        rename("x_embedder.proj.{leaf}", "patch_embed.proj.{leaf}"),
        *(
            rename(f"{old}.mlp.{2 * number - 2}.{{leaf}}", f"{new}.linear_{number}.{{leaf}}")
            for old, new in embedders
            for number in (1, 2)
        ),
        rename("t_block.1.{leaf}", "time_embed.linear.{leaf}"),
        rename("y_embedder.y_proj.fc1.{leaf}", "caption_projection.linear_1.{leaf}"),
        rename("y_embedder.y_proj.fc2.{leaf}", "caption_projection.linear_2.{leaf}"),
        rename("attention_y_norm.{leaf}", "caption_norm.{leaf}"),
        split(f"{file}.attn.qkv.{{leaf}}", *(f"{model}.attn1.to_{name}.{{leaf}}" for name in "qkv")),
        split(f"{file}.cross_attn.kv_linear.{{leaf}}", *(f"{model}.attn2.to_{name}.{{leaf}}" for name in "kv")),
        *(rename(f"{file}.{old}", f"{model}.{new}") for old, new in pairs),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
        rename("final_layer.scale_shift_table", "scale_shift_table"),
    ]
    return KeyMap(tuple(rules))


_NORMS = (("q_norm.{leaf}", "norm_q.{leaf}"), ("k_norm.{leaf}", "norm_k.{leaf}"))


def _half_layout(half: str, way: str, sampling: str) -> list[Rule]:
    """One half of MIT's autoencoder: levels are lists of operations, samplings among them."""
    file, model = f"{half}.stages.{{n}}.op_list.{{m}}", f"{half}.{way}_blocks.{{n}}.{{m}}"
    attention, feed_forward = f"{file}.context_module.main", f"{file}.local_module.main"
    convolved = (("inverted_conv.conv", "conv_inverted"), ("depth_conv.conv", "conv_depth"))
    return [
        squeeze_and_split(f"{attention}.qkv.conv.weight", *(f"{model}.attn.to_{name}.weight" for name in "qkv")),
        rename(f"{attention}.aggreg.{{i}}.0.{{leaf}}", f"{model}.attn.to_qkv_multiscale.{{i}}.proj_in.{{leaf}}"),
        rename(f"{attention}.aggreg.{{i}}.1.{{leaf}}", f"{model}.attn.to_qkv_multiscale.{{i}}.proj_out.{{leaf}}"),
        squeeze(f"{attention}.proj.conv.weight", f"{model}.attn.to_out.weight"),
        rename(f"{attention}.proj.norm.{{leaf}}", f"{model}.attn.norm_out.{{leaf}}"),
        *(rename(f"{feed_forward}.{old}.{{leaf}}", f"{model}.conv_out.{new}.{{leaf}}") for old, new in convolved),
        rename(f"{feed_forward}.point_conv.conv.{{leaf}}", f"{model}.conv_out.conv_point.{{leaf}}"),
        rename(f"{feed_forward}.point_conv.norm.{{leaf}}", f"{model}.conv_out.norm.{{leaf}}"),
        rename(f"{file}.main.conv1.conv.{{leaf}}", f"{model}.conv1.{{leaf}}"),
        rename(f"{file}.main.conv2.conv.{{leaf}}", f"{model}.conv2.{{leaf}}"),
        rename(f"{file}.main.conv2.norm.{{leaf}}", f"{model}.norm.{{leaf}}"),
        rename(f"{file}.main.{sampling}.{{leaf}}", f"{model}.conv.{{leaf}}"),
    ]


_ORIGINAL_AUTOENCODER = KeyMap(
    (
        rename("encoder.project_in.conv.{leaf}", "encoder.conv_in.{leaf}"),
        *_half_layout("encoder", "down", "conv"),
        rename("encoder.project_out.main.op_list.0.conv.{leaf}", "encoder.conv_out.{leaf}"),
        rename("decoder.project_in.main.conv.{leaf}", "decoder.conv_in.{leaf}"),
        *_half_layout("decoder", "up", "conv.conv"),
        rename("decoder.project_out.op_list.0.{leaf}", "decoder.norm_out.{leaf}"),
        rename("decoder.project_out.op_list.2.conv.{leaf}", "decoder.conv_out.{leaf}"),
    )
)

FAMILY = Family(
    "sana",
    (
        Architecture(
            "transformer",
            "diffusers.SanaTransformer2DModel",
            _transformer,
            _inputs,
            published={
                "Efficient-Large-Model/Sana_1600M_1024px_diffusers": _1600M,
                "Efficient-Large-Model/Sana_600M_1024px_diffusers": _600M,
                "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers": {
                    **_1600M,
                    "num_layers": 60,
                    "qk_norm": "rms_norm_across_heads",
                },
                "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": {
                    **_1600M,
                    "guidance_embeds": True,
                    "qk_norm": "rms_norm_across_heads",
                },
            },
            layouts={"original": _original},
            examples=({**_1600M, "num_layers": 1, "attention_bias": True},),
            beside=("pos_embed", "y_embedder.y_embedding", "logvar_linear.{leaf}"),
            unverified={
                "num_attention_heads": 70,
                "attention_head_dim": _HEAD_DIM,
                "num_cross_attention_heads": 20,
                "cross_attention_head_dim": 112,
                "sample_size": 32,
            },
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                32,
                spatial=32,
                autoencoder=AutoencoderEntries(levels("encoder_block_out_channels")),
            ),
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderDC",
            _autoencoder,
            _autoencoder_inputs,
            published={"mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers": _DC_AE},
            layouts={"original": _ORIGINAL_AUTOENCODER},
            unverified={"scaling_factor": 1.0, "attention_head_dim": 32},
        ),
    ),
    repositories={
        name: Repository(
            f"diffusers.{'SanaSprintPipeline' if 'Sprint' in name else 'SanaPipeline'}",
            {
                "transformer": Component("diffusers.SanaTransformer2DModel", name),
                "vae": Component("diffusers.AutoencoderDC", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"),
                "text_encoder": Component("transformers.Gemma2Model", "google/gemma-2-2b-it"),
            },
        )
        for name in (
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            "Efficient-Large-Model/Sana_600M_1024px_diffusers",
            "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
            "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        )
    },
)
