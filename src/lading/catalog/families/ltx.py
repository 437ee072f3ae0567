"""LTX-Video and LTX-2: films from prompts and pictures, LTX-2 with sound. https://github.com/Lightricks"""

from __future__ import annotations

from dataclasses import replace
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
from lading.catalog.families import _ltx_layouts
from lading.catalog.families._ltx_autoencoders import BESIDE_THE_TRANSFORMERS
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, entry, every, first_of, halved_patches
from lading.latents.latent_numbers import AudioNumbers

_VIDEO_2B = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "caption_channels": 4096,
    "attention_bias": True,
    "attention_out_bias": True,
}
_VIDEO_13B = {**_VIDEO_2B, "attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}
_LTX2 = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "gated_attn": False,
    "cross_attn_mod": False,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "audio_gated_attn": False,
    "audio_cross_attn_mod": False,
    "num_layers": 48,
    "caption_channels": 3840,
    "attention_bias": True,
    "attention_out_bias": True,
    "use_prompt_embeddings": True,
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
    "rope_type": "split",
    "perturbed_attn": False,
}
_WITHOUT_BIASES = {
    **_LTX2,
    "num_layers": 1,
    "attention_bias": False,
    "attention_out_bias": False,
    "ff_bias": False,
    "audio_ff_bias": False,
    "use_keyframes_abs_pos_embedding": True,
}
_LTX2_3 = {
    **_LTX2,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
_HEADS = 32
"""Of every published model; the norms span all heads, so that shapes do not tell it."""


def _video(shapes: Shapes) -> dict[str, Any]:
    width, in_channels = shapes.shape("proj_in.weight")
    return {
        "in_channels": in_channels,
        "out_channels": shapes.size("proj_out.weight"),
        "num_attention_heads": _HEADS,
        "attention_head_dim": quotient(width, _HEADS, "width of a head"),
        "cross_attention_dim": shapes.size("transformer_blocks.{n}.attn2.to_k.weight", 1),
        "num_layers": shapes.count("transformer_blocks"),
        "caption_channels": shapes.size("caption_projection.linear_1.weight", 1),
        "attention_bias": shapes.has("transformer_blocks.{n}.attn1.to_q.bias"),
        "attention_out_bias": shapes.has("transformer_blocks.{n}.attn1.to_out.0.bias"),
    }


def _ltx2(shapes: Shapes) -> dict[str, Any]:
    width, in_channels = shapes.shape("proj_in.weight")
    audio_width, audio_channels = shapes.shape("audio_proj_in.weight")
    block, caption = "transformer_blocks.{n}", "caption_projection.linear_1.weight"
    modulated = shapes.size("time_embed.linear.weight") == 9 * width
    audio_modulated = shapes.size("audio_time_embed.linear.weight") == 9 * audio_width
    prompted = shapes.has("prompt_adaln.linear.weight")
    return {
        "in_channels": in_channels,
        "out_channels": shapes.size("proj_out.weight"),
        "num_attention_heads": _HEADS,
        "attention_head_dim": quotient(width, _HEADS, "width of a head"),
        "cross_attention_dim": shapes.size(f"{block}.attn2.to_k.weight", 1),
        "gated_attn": shapes.has(f"{block}.attn1.to_gate_logits.weight"),
        "cross_attn_mod": modulated,
        "audio_in_channels": audio_channels,
        "audio_out_channels": shapes.size("audio_proj_out.weight"),
        "audio_num_attention_heads": _HEADS,
        "audio_attention_head_dim": quotient(audio_width, _HEADS, "width of a head"),
        "audio_cross_attention_dim": shapes.size(f"{block}.audio_attn2.to_k.weight", 1),
        "audio_gated_attn": shapes.has(f"{block}.audio_attn1.to_gate_logits.weight"),
        "audio_cross_attn_mod": audio_modulated,
        "num_layers": shapes.count("transformer_blocks"),
        "caption_channels": shapes.size(caption, 1) if shapes.has(caption) else 3840,
        "attention_bias": shapes.has(f"{block}.attn1.to_q.bias"),
        "attention_out_bias": shapes.has(f"{block}.attn1.to_out.0.bias"),
        "use_prompt_embeddings": shapes.has(caption),
        "ff_bias": shapes.has(f"{block}.ff.net.2.bias"),
        "audio_ff_bias": shapes.has(f"{block}.audio_ff.net.2.bias"),
        "use_prompt_adaln_single": prompted or not (modulated or audio_modulated),
        "use_keyframes_abs_pos_embedding": shapes.has("keyframes_abs_pos_embedding"),
    }


def _grid(extent: Extent) -> tuple[int, int, int]:
    return (extent.num_frames - 1) // 8 + 1, extent.height // 32, extent.width // 32


def _video_inputs(config: Config, extent: Extent) -> Inputs:
    frames, height, width = _grid(extent)
    return {
        "hidden_states": InputSpec((extent.batch, frames * height * width, config["in_channels"])),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["caption_channels"])),
        "timestep": InputSpec((extent.batch,)),
        "encoder_attention_mask": InputSpec((extent.batch, extent.tokens), "int64"),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def _ltx2_inputs(config: Config, extent: Extent) -> Inputs:
    frames, height, width = _grid(extent)
    audio = max(extent.num_frames, 1)
    video_text = audio_text = config["caption_channels"]
    if not config["use_prompt_embeddings"]:
        video_text, audio_text = config["cross_attention_dim"], config["audio_cross_attention_dim"]
    return {
        "hidden_states": InputSpec((extent.batch, frames * height * width, config["in_channels"])),
        "audio_hidden_states": InputSpec((extent.batch, audio, config["audio_in_channels"])),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, video_text)),
        "audio_encoder_hidden_states": InputSpec((extent.batch, extent.tokens, audio_text)),
        "timestep": InputSpec((extent.batch,)),
        "sigma": InputSpec((extent.batch,)),
        "encoder_attention_mask": InputSpec((extent.batch, extent.tokens), "int64"),
        "audio_encoder_attention_mask": InputSpec((extent.batch, extent.tokens), "int64"),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": audio,
    }


_SCALING = "spatio_temporal_scaling"
_LATENT = LatentNumbers(
    ("batch", "channels", "frames", "height", "width"),
    128,
    spatial=32,
    temporal=8,
    packed=True,
    autoencoder=AutoencoderEntries(
        first_of(entry("spatial_compression_ratio"), halved_patches("patch_size", 4, _SCALING)),
        frames=every(first_of(entry("temporal_compression_ratio"), halved_patches("patch_size_t", 1, _SCALING))),
    ),
)
_AUDIO = AudioNumbers(
    channels=8,
    bins=64,
    bins_per_latent=4,
    frames_per_latent=4,
    sampling_rate=16000,
    hop_length=160,
    denoiser_channels="audio_in_channels",
)
_UNVERIFIED = {"num_attention_heads": _HEADS, "attention_head_dim": 64}


def _ltx_repository(name: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.LTXVideoTransformer3DModel", name),
        "vae": Component("diffusers.AutoencoderKLLTXVideo", name),
        "text_encoder": Component("transformers.T5EncoderModel", "google/t5-v1_1-xxl"),
    }
    return Repository("diffusers.LTXPipeline", parts)


def _ltx2_repository(name: str, vocoder: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.LTX2VideoTransformer3DModel", name),
        "vae": Component("diffusers.AutoencoderKLLTX2Video", name),
        "audio_vae": Component("diffusers.AutoencoderKLLTX2Audio", name),
        "vocoder": Component(f"diffusers.pipelines.ltx2.{vocoder}", name),
        "connectors": Component("diffusers.pipelines.ltx2.LTX2TextConnectors", name),
        "text_encoder": Component(
            "transformers.Gemma3ForConditionalGeneration", "google/gemma-3-12b-it-qat-q4_0-unquantized"
        ),
    }
    return Repository("diffusers.LTX2Pipeline", parts)


FAMILY = Family(
    "ltx",
    (
        Architecture(
            "transformer",
            "diffusers.LTXVideoTransformer3DModel",
            _video,
            _video_inputs,
            published={
                **dict.fromkeys(
                    ("Lightricks/LTX-Video", "Lightricks/LTX-Video-0.9.1", "Lightricks/LTX-Video-0.9.5"), _VIDEO_2B
                ),
                "Lightricks/LTX-Video-0.9.7-dev": _VIDEO_13B,
            },
            layouts={"original": _ltx_layouts.VIDEO},
            examples=({**_VIDEO_2B, "num_layers": 1, "attention_bias": False, "attention_out_bias": False},),
            unverified=_UNVERIFIED,
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=_LATENT,
        ),
        *BESIDE_THE_TRANSFORMERS,
        Architecture(
            "transformer",
            "diffusers.LTX2VideoTransformer3DModel",
            _ltx2,
            _ltx2_inputs,
            published={"Lightricks/LTX-2": _LTX2, "Lightricks/LTX-2.3": _LTX2_3},
            layouts={"original": _ltx_layouts.LTX2},
            examples=(
                _WITHOUT_BIASES,
                {**_LTX2_3, "num_layers": 1, "use_prompt_adaln_single": False},
            ),
            unverified={
                **_UNVERIFIED,
                "audio_num_attention_heads": _HEADS,
                "audio_attention_head_dim": 64,
                "rope_type": "split",
                "perturbed_attn": False,
            },
            beside=("video_embeddings_connector.{rest}", "audio_embeddings_connector.{rest}"),
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=replace(_LATENT, audio=_AUDIO),
        ),
    ),
    repositories={
        "Lightricks/LTX-Video": _ltx_repository("Lightricks/LTX-Video"),
        "Lightricks/LTX-Video-0.9.1": _ltx_repository("Lightricks/LTX-Video-0.9.1"),
        "Lightricks/LTX-Video-0.9.5": _ltx_repository("Lightricks/LTX-Video-0.9.5"),
        "Lightricks/LTX-Video-0.9.7-dev": _ltx_repository("Lightricks/LTX-Video-0.9.7-dev"),
        "Lightricks/LTX-2": _ltx2_repository("Lightricks/LTX-2", "LTX2Vocoder"),
        "Lightricks/LTX-2.3": _ltx2_repository("Lightricks/LTX-2.3", "LTX2VocoderWithBWE"),
    },
)
