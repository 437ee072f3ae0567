"""CogVideoX: films from prompts and pictures. https://github.com/zai-org/CogVideo"""

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
from lading.latents.compression import AutoencoderEntries, entry, every

_2B = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "ofs_embed_dim": None,
    "text_embed_dim": 4096,
    "num_layers": 30,
    "attention_bias": True,
    "patch_size": 2,
    "patch_size_t": None,
    "patch_bias": True,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "max_text_seq_length": 226,
    "temporal_compression_ratio": 4,
}
_5B = {**_2B, "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_5B_I2V = {**_5B, "in_channels": 32, "use_learned_positional_embeddings": True}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.15258426,
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    head = shapes.size("transformer_blocks.{n}.attn1.norm_q.weight")
    weight = shapes.shape("patch_embed.proj.weight")
    width, out = weight[0], shapes.size("proj_out.weight")
    learned = shapes.has("patch_embed.pos_embedding")
    config: dict[str, Any] = {
        "num_attention_heads": quotient(width, head, "heads"),
        "attention_head_dim": head,
        "time_embed_dim": shapes.size("time_embedding.linear_1.weight"),
        "ofs_embed_dim": shapes.size("ofs_embedding.linear_1.weight", 1)
        if shapes.has("ofs_embedding.linear_1.weight")
        else None,
        "text_embed_dim": shapes.size("patch_embed.text_proj.weight", 1),
        "num_layers": shapes.count("transformer_blocks"),
        "attention_bias": shapes.has("transformer_blocks.{n}.attn1.to_q.bias"),
        "patch_bias": shapes.has("patch_embed.proj.bias"),
        "use_learned_positional_embeddings": learned,
    }
    if len(weight) == 4:
        patch = weight[2]
        out_channels = quotient(out, patch**2, "channels of a patch")
        return {
            **config,
            "in_channels": weight[1],
            "patch_size": patch,
            "patch_size_t": None,
            "out_channels": out_channels,
        }
    # In 1.5 the patches are a linear layer of 2 frames by 2 by 2 pixels, whatever its config says of a bias.
    return {
        **config,
        "patch_bias": False,
        "in_channels": quotient(weight[1], 8, "channels of a patch"),
        "patch_size": 2,
        "patch_size_t": 2,
        "out_channels": quotient(out, 8, "channels of a patch"),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    depth = shapes.count("encoder.down_blocks")
    widths = [shapes.size(f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight") for level in range(depth)]
    return {
        "in_channels": shapes.size("encoder.conv_in.conv.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.conv.weight"),
        "down_block_types": ("CogVideoXDownBlock3D",) * depth,
        "up_block_types": ("CogVideoXUpBlock3D",) * depth,
        "block_out_channels": tuple(widths),
        "latent_channels": shapes.size("decoder.conv_in.conv.weight", 1),
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets"),
        "use_quant_conv": shapes.has("quant_conv.conv.weight"),
        "use_post_quant_conv": shapes.has("post_quant_conv.conv.weight"),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    frames = (extent.num_frames - 1) // 4 + 1
    step = config.get("patch_size_t") or 1
    frames = -(-frames // step) * step
    height, width = extent.height // 8, extent.width // 8
    if config.get("use_learned_positional_embeddings"):  # which are those of one size
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        height, width = config["sample_height"], config["sample_width"]
    tokens = frames // step * (height // config["patch_size"]) * (width // config["patch_size"])
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, frames, config["in_channels"], height, width)),
        "encoder_hidden_states": InputSpec((extent.batch, config["max_text_seq_length"], config["text_embed_dim"])),
        "timestep": InputSpec((extent.batch,), "int64"),
    }
    if config.get("ofs_embed_dim"):
        inputs["ofs"] = InputSpec((1,))
    if config.get("use_rotary_positional_embeddings"):
        angles = InputSpec((tokens, config["attention_head_dim"]))
        inputs["image_rotary_emb"] = (angles, angles)
    return inputs


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    film = (extent.batch, config["in_channels"], extent.num_frames, extent.height, extent.width)
    return {"sample": InputSpec(film)}


def _repository(name: str, pipeline: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.CogVideoXTransformer3DModel", name),
        "vae": Component("diffusers.AutoencoderKLCogVideoX", name if name.endswith("2b") else "zai-org/CogVideoX-5b"),
        "text_encoder": Component("transformers.T5EncoderModel", "google/t5-v1_1-xxl"),
    }
    return Repository(f"diffusers.{pipeline}", parts)


FAMILY = Family(
    "cogvideox",
    (
        Architecture(
            "transformer",
            "diffusers.CogVideoXTransformer3DModel",
            _transformer,
            _inputs,
            published={
                "zai-org/CogVideoX-2b": _2B,
                "zai-org/CogVideoX-5b": _5B,
                "zai-org/CogVideoX-5b-I2V": _5B_I2V,
                "zai-org/CogVideoX1.5-5B": {
                    **_5B,
                    "patch_size_t": 2,
                    "patch_bias": False,
                    "sample_width": 300,
                    "sample_height": 300,
                    "sample_frames": 81,
                },
                "zai-org/CogVideoX1.5-5B-I2V": {
                    **_5B,
                    "in_channels": 32,
                    "ofs_embed_dim": 512,
                    "patch_size_t": 2,
                    "patch_bias": False,
                    "sample_width": 300,
                    "sample_height": 300,
                    "sample_frames": 81,
                },
            },
            unverified={
                "use_rotary_positional_embeddings": False,
                "sample_width": 90,
                "sample_height": 60,
                "sample_frames": 49,
                "max_text_seq_length": 226,
                "temporal_compression_ratio": 4,
            },
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "frames", "channels", "height", "width"),
                16,
                spatial=8,
                temporal=4,
                patch=2,
                autoencoder=AutoencoderEntries(frames=every(entry("temporal_compression_ratio"))),
            ),
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderKLCogVideoX",
            _vae,
            _vae_inputs,
            published={"zai-org/CogVideoX-2b": _VAE, "zai-org/CogVideoX-5b": {**_VAE, "scaling_factor": 0.7}},
            unverified={"scaling_factor": 1.15258426},
        ),
    ),
    repositories={
        name: _repository(name, pipeline)
        for name, pipeline in {
            "zai-org/CogVideoX-2b": "CogVideoXPipeline",
            "zai-org/CogVideoX-5b": "CogVideoXPipeline",
            "zai-org/CogVideoX-5b-I2V": "CogVideoXImageToVideoPipeline",
            "zai-org/CogVideoX1.5-5B": "CogVideoXPipeline",
        }.items()
    },
)
