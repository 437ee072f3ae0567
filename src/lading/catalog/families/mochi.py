"""Mochi 1: films from prompts. https://github.com/genmoai/mochi"""

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


_VAE = {
    "in_channels": 15,
    "out_channels": 3,
    "encoder_block_out_channels": (64, 128, 256, 384),
    "decoder_block_out_channels": (128, 256, 512, 768),
    "latent_channels": 12,
    "layers_per_block": (3, 3, 4, 6, 3),
    "temporal_expansions": (1, 2, 3),
    "spatial_expansions": (2, 2, 2),
    "add_attention_block": (False, True, True, True, True),
}


def _autoencoder(shapes: Shapes) -> dict[str, Any]:
    down, up = "encoder.down_blocks", "decoder.up_blocks"
    depth = shapes.count(down)
    inner = [shapes.size(f"{down}.{level}.resnets.0.conv1.conv.weight") for level in range(depth)]
    outer = [shapes.size(f"{up}.{level}.resnets.0.conv1.conv.weight") for level in reversed(range(depth))]
    strides = [shapes.shape(f"{down}.{level}.conv_in.conv.weight") for level in range(depth)]
    return {
        "in_channels": shapes.size("encoder.proj_in.weight", 1),
        "out_channels": shapes.size("decoder.proj_out.weight"),
        "encoder_block_out_channels": (shapes.size("encoder.proj_in.weight"), *inner),
        "decoder_block_out_channels": (shapes.size("decoder.proj_out.weight", 1), *outer),
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "layers_per_block": (
            shapes.count("encoder.block_in.resnets"),
            *(shapes.count(f"{down}.{level}.resnets") for level in range(depth)),
            shapes.count("encoder.block_out.resnets"),
        ),
        "temporal_expansions": tuple(stride[2] for stride in strides),
        "spatial_expansions": tuple(stride[3] for stride in strides),
        "add_attention_block": (
            shapes.has("encoder.block_in.attentions.0.to_q.weight"),
            *(shapes.has(f"{down}.{level}.attentions.0.to_q.weight") for level in range(depth)),
            shapes.has("encoder.block_out.attentions.0.to_q.weight"),
        ),
    }


def _autoencoder_inputs(_config: Config, extent: Extent) -> Inputs:
    return {"sample": InputSpec((extent.batch, 3, extent.num_frames // 6 * 6 + 1, extent.height, extent.width))}


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
        Architecture(
            "vae",
            "diffusers.AutoencoderKLMochi",
            _autoencoder,
            _autoencoder_inputs,
            published={"genmo/mochi-1-preview": _VAE},
        ),
    ),
    repositories={
        "genmo/mochi-1-preview": Repository(
            "diffusers.MochiPipeline",
            {
                "transformer": Component("diffusers.MochiTransformer3DModel", "genmo/mochi-1-preview"),
                "vae": Component("diffusers.AutoencoderKLMochi", "genmo/mochi-1-preview"),
                "text_encoder": Component("transformers.T5EncoderModel", "google/t5-v1_1-xxl"),
            },
        ),
    },
)
