"""HunyuanVideo: films from prompts and pictures. https://github.com/Tencent/HunyuanVideo"""

from __future__ import annotations

from math import prod
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
from lading.catalog.families._rotary import three_axes
from lading.catalog.keymap import KeyMap, Rule, rename, split, swap_halves
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, entry, every

_T2V = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_axes_dim": (16, 56, 56),
    "image_condition_type": None,
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "scaling_factor": 0.476986,
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, frames, patch, _ = shapes.shape("x_embedder.proj.weight")
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight")
    return {
        "in_channels": in_channels,
        "out_channels": quotient(shapes.size("proj_out.weight"), prod((frames, patch, patch)), "channels of a patch"),
        "num_attention_heads": quotient(width, head, "heads"),
        "attention_head_dim": head,
        "num_layers": shapes.count("transformer_blocks"),
        "num_single_layers": shapes.count("single_transformer_blocks"),
        "num_refiner_layers": shapes.count("context_embedder.token_refiner.refiner_blocks"),
        "mlp_ratio": shapes.size("transformer_blocks.{n}.ff.net.2.weight", 1) / width,
        "patch_size": patch,
        "patch_size_t": frames,
        "guidance_embeds": shapes.has("time_text_embed.guidance_embedder.linear_1.weight"),
        "text_embed_dim": shapes.size("context_embedder.proj_in.weight", 1),
        "pooled_projection_dim": shapes.size("time_text_embed.text_embedder.linear_1.weight", 1),
        "rope_axes_dim": three_axes(head),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    depth = shapes.count("encoder.down_blocks")
    widths = [shapes.size(f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight") for level in range(depth)]
    return {
        "in_channels": shapes.size("encoder.conv_in.conv.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.conv.weight"),
        "latent_channels": shapes.size("decoder.conv_in.conv.weight", 1),
        "block_out_channels": tuple(widths),
        "down_block_types": ("HunyuanVideoDownBlock3D",) * depth,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * depth,
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets"),
        "mid_block_add_attention": shapes.has("encoder.mid_block.attentions.0.to_q.weight"),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    frames = (extent.num_frames - 1) // 4 + 1
    inputs: Inputs = {
        "hidden_states": InputSpec(
            (extent.batch, config["in_channels"], frames, extent.height // 8, extent.width // 8)
        ),
        "timestep": InputSpec((extent.batch,), "int64"),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["text_embed_dim"])),
        "encoder_attention_mask": InputSpec((extent.batch, extent.tokens), "bool"),
        "pooled_projections": InputSpec((extent.batch, config["pooled_projection_dim"])),
    }
    return {**inputs, "guidance": InputSpec((extent.batch,))} if config["guidance_embeds"] else inputs


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    film = (extent.batch, config["in_channels"], extent.num_frames, extent.height, extent.width)
    return {"sample": InputSpec(film)}


def _stream(file: str, norm: str, feed_forward: str, parts: tuple[str, ...], norms: tuple[str, str]) -> list[Rule]:
    block, target = f"double_blocks.{{n}}.{file}", "transformer_blocks.{n}."
    return [
        rename(f"{block}_mod.linear.{{leaf}}", f"{target}{norm}.linear.{{leaf}}"),
        split(f"{block}_attn_qkv.{{leaf}}", *(f"{target}attn.{part}.{{leaf}}" for part in parts[:3])),
        rename(f"{block}_attn_proj.{{leaf}}", f"{target}attn.{parts[3]}.{{leaf}}"),
        rename(f"{block}_attn_q_norm.{{leaf}}", f"{target}attn.{norms[0]}.{{leaf}}"),
        rename(f"{block}_attn_k_norm.{{leaf}}", f"{target}attn.{norms[1]}.{{leaf}}"),
        rename(f"{block}_mlp.fc1.{{leaf}}", f"{target}{feed_forward}.net.0.proj.{{leaf}}"),
        rename(f"{block}_mlp.fc2.{{leaf}}", f"{target}{feed_forward}.net.2.{{leaf}}"),
    ]


_REFINER = ("txt_in.individual_token_refiner.blocks.{n}", "context_embedder.token_refiner.refiner_blocks.{n}")
_SINGLE = ("single_blocks.{n}", "single_transformer_blocks.{n}")


def _original(shapes: Shapes) -> KeyMap:
    """Tencent's own names; how wide the feed-forward of the single blocks is, their second layer tells."""
    second = [
        name
        for file in _SINGLE
        for name in shapes.find(f"{file}.linear2.weight") + shapes.find(f"{file}.proj_out.weight")
    ]
    width, joined = shapes.shape(second[0]) if second else (1, 5)
    rules = (
        rename("img_in.proj.{leaf}", "x_embedder.proj.{leaf}"),
        *(
            rename(f"{file}_in.mlp.{2 * number - 2}.{{leaf}}", f"time_text_embed.{model}.linear_{number}.{{leaf}}")
            for file, model in (("time", "timestep_embedder"), ("guidance", "guidance_embedder"))
            for number in (1, 2)
        ),
        rename("vector_in.in_layer.{leaf}", "time_text_embed.text_embedder.linear_1.{leaf}"),
        rename("vector_in.out_layer.{leaf}", "time_text_embed.text_embedder.linear_2.{leaf}"),
        rename("txt_in.input_embedder.{leaf}", "context_embedder.proj_in.{leaf}"),
        rename("txt_in.t_embedder.mlp.0.{leaf}", "context_embedder.time_text_embed.timestep_embedder.linear_1.{leaf}"),
        rename("txt_in.t_embedder.mlp.2.{leaf}", "context_embedder.time_text_embed.timestep_embedder.linear_2.{leaf}"),
        rename("txt_in.c_embedder.{rest}", "context_embedder.time_text_embed.text_embedder.{rest}"),
        split(f"{_REFINER[0]}.self_attn_qkv.{{leaf}}", *(f"{_REFINER[1]}.attn.to_{name}.{{leaf}}" for name in "qkv")),
        rename(f"{_REFINER[0]}.self_attn_proj.{{leaf}}", f"{_REFINER[1]}.attn.to_out.0.{{leaf}}"),
        rename(f"{_REFINER[0]}.norm{{i}}.{{leaf}}", f"{_REFINER[1]}.norm{{i}}.{{leaf}}"),
        rename(f"{_REFINER[0]}.mlp.fc1.{{leaf}}", f"{_REFINER[1]}.ff.net.0.proj.{{leaf}}"),
        rename(f"{_REFINER[0]}.mlp.fc2.{{leaf}}", f"{_REFINER[1]}.ff.net.2.{{leaf}}"),
        rename(f"{_REFINER[0]}.adaLN_modulation.1.{{leaf}}", f"{_REFINER[1]}.norm_out.linear.{{leaf}}"),
        *_stream("img", "norm1", "ff", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
        *_stream(
            "txt",
            "norm1_context",
            "ff_context",
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            ("norm_added_q", "norm_added_k"),
        ),
        split(
            f"{_SINGLE[0]}.linear1.{{leaf}}",
            *(f"{_SINGLE[1]}.attn.to_{name}.{{leaf}}" for name in "qkv"),
            f"{_SINGLE[1]}.proj_mlp.{{leaf}}",
            parts=(width, width, width, joined - width),
        ),
        rename(f"{_SINGLE[0]}.linear2.{{leaf}}", f"{_SINGLE[1]}.proj_out.{{leaf}}"),
        rename(f"{_SINGLE[0]}.q_norm.{{leaf}}", f"{_SINGLE[1]}.attn.norm_q.{{leaf}}"),
        rename(f"{_SINGLE[0]}.k_norm.{{leaf}}", f"{_SINGLE[1]}.attn.norm_k.{{leaf}}"),
        rename(f"{_SINGLE[0]}.modulation.linear.{{leaf}}", f"{_SINGLE[1]}.norm.linear.{{leaf}}"),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
        swap_halves("final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
    )
    return KeyMap(rules)


def _repository(name: str, pipeline: str, text_encoder: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.HunyuanVideoTransformer3DModel", name),
        "vae": Component("diffusers.AutoencoderKLHunyuanVideo", "hunyuanvideo-community/HunyuanVideo"),
        "text_encoder": Component(f"transformers.{text_encoder}", name),
        "text_encoder_2": Component("transformers.CLIPTextModel", "openai/clip-vit-large-patch14"),
    }
    return Repository(f"diffusers.{pipeline}", parts)


FAMILY = Family(
    "hunyuan_video",
    (
        Architecture(
            "transformer",
            "diffusers.HunyuanVideoTransformer3DModel",
            _transformer,
            _inputs,
            published={
                "hunyuanvideo-community/HunyuanVideo": _T2V,
                "hunyuanvideo-community/HunyuanVideo-I2V": {
                    **_T2V,
                    "guidance_embeds": False,
                    "image_condition_type": "token_replace",
                },
            },
            layouts={"original": _original},
            unverified={"rope_axes_dim": (16, 56, 56), "image_condition_type": None},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "frames", "height", "width"),
                16,
                spatial=8,
                temporal=4,
                patch=2,
                guidance="passes",
                autoencoder=AutoencoderEntries(
                    entry("spatial_compression_ratio"), frames=every(entry("temporal_compression_ratio"))
                ),
            ),
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderKLHunyuanVideo",
            _vae,
            _vae_inputs,
            published={"hunyuanvideo-community/HunyuanVideo": _VAE},
            unverified={"scaling_factor": 0.476986},
        ),
    ),
    repositories={
        "hunyuanvideo-community/HunyuanVideo": _repository(
            "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", "LlamaModel"
        ),
        "hunyuanvideo-community/HunyuanVideo-I2V": _repository(
            "hunyuanvideo-community/HunyuanVideo-I2V",
            "HunyuanVideoImageToVideoPipeline",
            "LlavaForConditionalGeneration",
        ),
    },
)
