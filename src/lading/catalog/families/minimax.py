"""MiniMax-H3, films with sound, and MiniMax-Music3, songs. https://huggingface.co/MiniMaxAI"""

from __future__ import annotations

from math import prod
from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec, LatentNumbers
from lading.catalog.families._arrangement import published_arrangement
from lading.catalog.keymap import KeyMap, Rule, rename, split, split_heads, swap_halves
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, product
from lading.latents.frames import FrameRule

_H3 = {
    "num_attention_heads": 56,
    "attention_head_dim": 128,
    "hidden_size": 5376,
    "num_layers": 50,
    "num_refiner_layers": 2,
    "ffn_dim": 14336,
    "in_channels": 24,
    "audio_in_channels": 32,
    "patch_size": (1, 2, 2),
    "text_dim": 5120,
    "freq_dim": 256,
    "time_embed_hidden_dim": 5376,
    "time_embed_dim": 2688,
    "rope_freq_dim": 16,
}
_MUSIC3 = {
    "in_channels": 128,
    "condition_dim": 2048,
    "num_layers": 36,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "ff_inner_dim": 8192,
    "fourier_embedding_dim": 256,
}
_CONDITION = {"condition_hidden_dim": 4096, "num_condition_layers": 8, "out_dim": 2048}
_VOCODER = {
    "latent_channels": 128,
    "decoder_input_dim": 1024,
    "decoder_hidden_dim": 1536,
    "upsampling_ratios": (8, 8, 4, 2),
}
_VIDEO_VAES = {
    "MiniMax/MiniMax-H3": {
        "in_channels": 3,
        "latent_channels": 24,
        "block_out_channels": (128, 256, 256, 512, 512, 1024),
        "layers_per_block": 2,
        "decoder_num_layers": 36,
        "decoder_num_attention_heads": 32,
        "decoder_attention_head_dim": 64,
        "decoder_num_register_tokens": 4,
    }
}
_PATCH = (1, 2, 2)


def _h3(shapes: Shapes) -> dict[str, Any]:
    width, patch = shapes.shape("proj_in.weight")
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight")
    return {
        "num_attention_heads": quotient(shapes.size("transformer_blocks.{n}.attn.to_q.weight"), head, "heads"),
        "attention_head_dim": head,
        "hidden_size": width,
        "num_layers": shapes.count("transformer_blocks"),
        "num_refiner_layers": shapes.count("token_refiner.refiner_blocks"),
        "ffn_dim": shapes.size("transformer_blocks.{n}.ff.net.2.weight", 1),
        "in_channels": quotient(patch, prod(_PATCH), "channels of a patch"),
        "audio_in_channels": shapes.size("audio_proj_in.weight", 1),
        "patch_size": _PATCH,
        "text_dim": shapes.size("context_embedder.weight", 1),
        "freq_dim": shapes.size("time_embedder.linear_1.weight", 1),
        "time_embed_hidden_dim": shapes.size("time_embedder.linear_1.weight"),
        "time_embed_dim": shapes.size("time_embedder.linear_2.weight"),
        "rope_freq_dim": head // 8,
    }


def _music3(shapes: Shapes) -> dict[str, Any]:
    width, joined = shapes.shape("proj_in.weight")
    channels = shapes.size("proj_out.weight")
    return {
        "in_channels": channels,
        "condition_dim": joined - 2 * channels,
        "num_layers": shapes.count("transformer_blocks"),
        "num_attention_heads": quotient(width, 64, "heads"),
        "attention_head_dim": 64,
        "ff_inner_dim": shapes.size("transformer_blocks.{n}.ff_out.weight", 1),
        "fourier_embedding_dim": shapes.size("time_embed.linear_1.weight", 1),
    }


def _condition(shapes: Shapes) -> dict[str, Any]:
    return {
        "condition_hidden_dim": shapes.size("proj.weight", 1),
        "num_condition_layers": shapes.size("layer_weight_logits"),
        "out_dim": shapes.size("proj.weight"),
    }


def _vocoder(shapes: Shapes) -> dict[str, Any]:
    kernels = [shapes.size(f"blocks.{number}.conv_t1.weight_v", 2) for number in range(shapes.count("blocks"))]
    return {
        "latent_channels": 2 * shapes.size("dec_in_proj.weight", 1),
        "decoder_input_dim": shapes.size("dec_in_proj.weight"),
        "decoder_hidden_dim": shapes.size("conv_in.weight_v"),
        "upsampling_ratios": tuple(kernel // 2 for kernel in kernels),
    }


def _video_vae(shapes: Shapes) -> dict[str, Any]:
    levels = range(shapes.count("encoder.down_blocks"))
    told = {
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "latent_channels": shapes.size("decoder.proj_in.weight", 1),
        "block_out_channels": tuple(
            shapes.size(f"encoder.down_blocks.{level}.resnets.0.conv1.weight") for level in levels
        ),
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets"),
        "decoder_num_layers": shapes.count("decoder.transformer_blocks"),
        "decoder_num_register_tokens": shapes.size("decoder.register_tokens", 1),
    }
    return published_arrangement(told, _VIDEO_VAES)


def _clips(autoencoder: Config) -> FrameRule | None:
    """The autoencoder codes films in clips and drops tokens between them; the last, shorter one makes two of them."""
    clip, strides = autoencoder.get("clip_length"), autoencoder.get("temporal_downsample_factors")
    if clip is None or strides is None:
        return None
    tokens = -(-clip // prod(strides))
    return FrameRule(clip, first=tokens, latents=tokens, first_latents=2)


def _h3_inputs(config: Config, extent: Extent) -> Inputs:
    frames = (extent.num_frames - 1) // 4 + 1
    video = frames * (extent.height // 32) * (extent.width // 32)
    audio, text = max(extent.num_frames, 1), extent.tokens
    total, batch = video + audio + text, extent.batch
    return {
        "hidden_states": InputSpec((batch, video, config["in_channels"] * prod(config["patch_size"]))),
        "audio_hidden_states": InputSpec((batch, audio, config["audio_in_channels"])),
        "encoder_hidden_states": InputSpec((batch, text, config["text_dim"])),
        "timestep": InputSpec((1,)),
        "timestep_indices": InputSpec((total,), "int64"),
        "token_tags": InputSpec((total,), "int64"),
        "position_ids": InputSpec((total, 3)),
        "video_indices": InputSpec((video,), "int64"),
        "audio_indices": InputSpec((audio,), "int64"),
        "text_indices": InputSpec((text,), "int64"),
    }


def _music3_inputs(config: Config, extent: Extent) -> Inputs:
    length = extent.num_frames * 86  # 44,100 samples in hops of 512
    return {
        "hidden_states": InputSpec((extent.batch, config["in_channels"], length)),
        "timestep": InputSpec((extent.batch,)),
        "encoder_hidden_states": InputSpec((extent.batch, length, config["condition_dim"])),
    }


def _condition_inputs(config: Config, extent: Extent) -> Inputs:
    width = config["num_condition_layers"] * config["condition_hidden_dim"]
    return {"hidden_states": InputSpec((extent.batch, extent.num_frames * 25, width))}


def _vocoder_inputs(config: Config, extent: Extent) -> Inputs:
    return {"latents": InputSpec((extent.batch, config["latent_channels"], extent.num_frames * 86))}


def _h3_block(file: str, model: str, head: int | None) -> list[Rule]:
    fused, parts = f"{file}.attn.qkv_proj.{{leaf}}", [f"{model}.attn.to_{name}.{{leaf}}" for name in "qkv"]
    return [
        split(fused, *parts) if head is None else split_heads(fused, *parts, head=head),
        rename(f"{file}.attn.q_norm.{{leaf}}", f"{model}.attn.norm_q.{{leaf}}"),
        rename(f"{file}.attn.k_norm.{{leaf}}", f"{model}.attn.norm_k.{{leaf}}"),
        rename(f"{file}.attn.out_proj.{{leaf}}", f"{model}.attn.to_out.0.{{leaf}}"),
        swap_halves(f"{file}.mlp.fc1.{{leaf}}", f"{model}.ff.net.0.proj.{{leaf}}"),  # gate and value
        rename(f"{file}.mlp.fc2.{{leaf}}", f"{model}.ff.net.2.{{leaf}}"),
        rename(f"{file}.{{rest}}", f"{model}.{{rest}}"),
    ]


def _h3_original(head: int | None) -> KeyMap:
    rules = (
        rename("video_patch_proj.{leaf}", "proj_in.{leaf}"),
        rename("audio_patch_proj.{leaf}", "audio_proj_in.{leaf}"),
        rename("condition_proj.{leaf}", "context_embedder.{leaf}"),
        rename("time_embedder.proj_in.{leaf}", "time_embedder.linear_1.{leaf}"),
        rename("time_embedder.proj_out.{leaf}", "time_embedder.linear_2.{leaf}"),
        *_h3_block("token_refiner.blocks.{n}", "token_refiner.refiner_blocks.{n}", head),
        rename("token_refiner.final_norm.{leaf}", "token_refiner.final_norm.{leaf}"),
        *_h3_block("blocks.{n}", "transformer_blocks.{n}", head),
        rename("final_layer.norm.{leaf}", "norm_out.norm.{leaf}"),
        rename("final_layer.adaln_proj.linear.{leaf}", "norm_out.linear.{leaf}"),
        rename("final_layer.video_out.{leaf}", "proj_out.{leaf}"),
        rename("final_layer.audio_out.{leaf}", "audio_proj_out.{leaf}"),
    )
    return KeyMap(rules)


def _h3_by_head(shapes: Shapes) -> KeyMap:
    """MiniMax's own shards: queries, keys and values head by head."""
    norm = "blocks.{n}.attn.q_norm.weight"
    return _h3_original(shapes.size(norm if shapes.has(norm) else "transformer_blocks.{n}.attn.norm_q.weight"))


_H3_STACKED = _h3_original(None)
"""Files that others made of them: all queries, all keys, all values. Names and shapes are the same."""


FAMILY = Family(
    "minimax",
    (
        Architecture(
            "transformer",
            "diffusers.MiniMaxH3Transformer3DModel",
            _h3,
            _h3_inputs,
            published={"MiniMax/MiniMax-H3": _H3},
            layouts={"original": _h3_by_head, "original (stacked)": _H3_STACKED},
            unverified={"patch_size": _PATCH, "rope_freq_dim": 16},
            beside=("rope.inv_freq",),
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "frames", "height", "width"),
                24,
                spatial=16,
                temporal=FrameRule(17, first=5, latents=5, first_latents=2),
                patch=2,
                packed=True,
                guidance="none",
                autoencoder=AutoencoderEntries(product("spatial_downsample_factors"), frames=_clips),
            ),
        ),
        Architecture(
            "video_vae",
            "diffusers.AutoencoderKLMiniMaxH3",
            _video_vae,
            None,  # it codes films in clips with tokens dropped between them, in methods of their own
            _VIDEO_VAES,
        ),
        Architecture(
            "transformer",
            "diffusers.MiniMaxMusic3Transformer1DModel",
            _music3,
            _music3_inputs,
            published={"MiniMax/MiniMax-Music3": _MUSIC3},
            unverified={"num_attention_heads": 32, "attention_head_dim": 64},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        ),
        Architecture(
            "condition_encoder",
            "diffusers.MiniMaxMusic3ConditionEncoder",
            _condition,
            _condition_inputs,
            published={"MiniMax/MiniMax-Music3": _CONDITION},
        ),
        Architecture(
            "vocoder",
            "diffusers.MiniMaxMusic3Vocoder",
            _vocoder,
            _vocoder_inputs,
            published={"MiniMax/MiniMax-Music3": _VOCODER},
        ),
    ),
)
