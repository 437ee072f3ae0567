"""Sana: pictures from prompts with linear attention, and its deep compression autoencoder. https://github.com/NVlabs/Sana"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec, LatentNumbers
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


def _inputs(config: Config, extent: Extent) -> Inputs:
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, config["in_channels"], extent.height // 32, extent.width // 32)),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["caption_channels"])),
        "timestep": InputSpec((extent.batch,)),
    }
    return {**inputs, "guidance": InputSpec((extent.batch,))} if config["guidance_embeds"] else inputs


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
    ),
)
