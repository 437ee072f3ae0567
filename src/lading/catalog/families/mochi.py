"""Mochi 1: films from prompts. https://github.com/genmoai/mochi"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family, LatentNumbers
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, every, product

_PREVIEW = {
    "patch_size": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 48,
    "pooled_projection_dim": 1536,
    "in_channels": 12,
    "out_channels": None,
    "text_embed_dim": 4096,
    "time_embed_dim": 256,
    "max_sequence_length": 256,
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, patch, _ = shapes.shape("patch_embed.proj.weight")
    head = shapes.size("transformer_blocks.{n}.attn1.norm_q.weight")
    out_channels = quotient(shapes.size("proj_out.weight"), patch**2, "channels of a patch")
    return {
        "patch_size": patch,
        "num_attention_heads": quotient(width, head, "heads"),
        "attention_head_dim": head,
        "num_layers": shapes.count("transformer_blocks"),
        "pooled_projection_dim": shapes.size("time_embed.caption_proj.weight"),
        "in_channels": in_channels,
        "out_channels": None if out_channels == in_channels else out_channels,
        "text_embed_dim": shapes.size("time_embed.caption_proj.weight", 1),
        "time_embed_dim": shapes.size("time_embed.timestep_embedder.linear_1.weight", 1),
    }


FAMILY = Family(
    "mochi",
    (
        Architecture(
            "transformer",
            "diffusers.MochiTransformer3DModel",
            _transformer,
            None,  # it gathers the tokens that the mask leaves, whose number only data tells
            published={"genmo/mochi-1-preview": _PREVIEW},
            unverified={"max_sequence_length": 256},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "frames", "height", "width"),
                12,
                spatial=8,
                temporal=6,
                patch=2,
                autoencoder=AutoencoderEntries(
                    product("spatial_expansions"), frames=every(product("temporal_expansions"))
                ),
            ),
        ),
    ),
)
