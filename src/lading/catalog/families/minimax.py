"""MiniMax-H3, films with sound, and MiniMax-Music3, songs. https://huggingface.co/MiniMaxAI"""

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
from lading.catalog.families import _minimax_layouts
from lading.catalog.families._arrangement import published_arrangement
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
        "clip_length": 17,
        "token_drop": 3,
        "latents_mean": (
            *(0.858090341091156, -0.9606591463088989, 1.0661640167236328, -0.5090325474739075, -0.2727581858634949),
            *(-1.3675414323806763, -0.2553254961967468, -0.26907554268836975, -0.5376840829849243),
            *(-0.0464097298681736, 0.6657370328903198, 0.19690127670764923, -0.5460608005523682, -0.4035342037677765),
            *(-0.23683024942874908, 0.25928452610969543, -0.30133944749832153, 0.211341992020607),
            *(-1.1206848621368408, 0.3581933379173279, -0.04225143790245056, 0.2604829967021942),
            *(0.22864092886447906, 0.7056031823158264),
        ),
        "latents_std": (
            *(1.2223774194717407, 1.2767263650894165, 1.6831774711608887, 1.7549455165863037, 1.5636216402053833),
            *(2.194143533706665, 0.9653137922286987, 1.0569885969161987, 0.841948926448822, 0.7729952931404114),
            *(1.8955937623977661, 0.946841835975647, 0.7996809482574463, 0.44988900423049927, 0.7197399735450745),
            *(0.6936293244361877, 2.961095094680786, 2.7694199085235596, 3.0496184825897217, 2.1088054180145264),
            *(3.276226282119751, 3.1627357006073, 2.2816812992095947, 2.6127843856811523),
        ),
    }
}
_AUDIO_VAES = {
    "MiniMax/MiniMax-H3": {
        "encoder_dim": 64,
        "encoder_rates": (2, 4, 4, 5, 5),
        "latent_dim": 2048,
        "latent_channels": 32,
        "num_attention_heads": 8,
        "decoder_dim": 1024,
        "decoder_rates": (5, 5, 2, 2, 2, 2, 2),
        "decoder_kernel_sizes": (9, 9, 4, 4, 4, 4, 4),
        "sampling_rate": 32000,
    }
}
_DEPTH_DECODER = {
    "hidden_size": 4096,
    "num_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "audio_vocab_size": 1024,
    "num_codebooks": 8,
    "max_position_embeddings": 16,
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


def _audio_vae(shapes: Shapes) -> dict[str, Any]:
    encoder, ups = "encoder.block", "decoder.ups"
    told = {
        "encoder_dim": shapes.size(f"{encoder}.0.weight_v"),
        "decoder_dim": shapes.size("decoder.conv_pre.weight_v"),
        "decoder_kernel_sizes": tuple(
            shapes.size(f"{ups}.{number}.0.weight_v", 2) for number in range(shapes.count(ups))
        ),
    }
    return published_arrangement(told, _AUDIO_VAES)


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


def _video_vae_inputs(config: Config, extent: Extent) -> Inputs:
    clips = max((extent.num_frames - 5) // config["clip_length"], 1)  # what is shorter than one does not come back
    frames = clips * config["clip_length"] + 5
    return {"sample": InputSpec((extent.batch, config["in_channels"], frames, extent.height, extent.width))}


def _audio_vae_inputs(config: Config, extent: Extent) -> Inputs:
    return {"sample": InputSpec((extent.batch, 1, 10 * extent.num_frames * prod(config["encoder_rates"])))}


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


def _depth_decoder(shapes: Shapes) -> dict[str, Any]:
    return {
        "hidden_size": shapes.size("norm.weight"),
        "num_layers": shapes.count("layers"),
        "intermediate_size": shapes.size("layers.{n}.gate_proj.weight"),
        "audio_vocab_size": shapes.size("audio_heads.{n}.weight"),
        "num_codebooks": shapes.count("audio_heads") + 1,  # the first is the language model's
        "max_position_embeddings": shapes.size("pos_embedding.weight"),
    }


def _depth_decoder_inputs(config: Config, extent: Extent) -> Inputs:
    return {"inputs_embeds": InputSpec((extent.batch, config["num_codebooks"], config["hidden_size"]))}


def _vocoder_inputs(config: Config, extent: Extent) -> Inputs:
    return {"latents": InputSpec((extent.batch, config["latent_channels"], extent.num_frames * 86))}


FAMILY = Family(
    "minimax",
    (
        Architecture(
            "transformer",
            "diffusers.MiniMaxH3Transformer3DModel",
            _h3,
            _h3_inputs,
            published={"MiniMax/MiniMax-H3": _H3},
            layouts={"original": _minimax_layouts.h3_by_head, "original (stacked)": _minimax_layouts.H3_STACKED},
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
            _video_vae_inputs,
            _VIDEO_VAES,
            layouts={"original": _minimax_layouts.VIDEO_VAE},
            beside=("decoder.mask_token",),
        ),
        Architecture(
            "audio_vae",
            "diffusers.AutoencoderKLMiniMaxH3Audio",
            _audio_vae,
            _audio_vae_inputs,
            _AUDIO_VAES,
            unverified={"sampling_rate": 32000, "latents_mean": None, "latents_std": None},
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
        Architecture(
            "rvq_depth_decoder",
            "diffusers.MiniMaxMusic3RVQDepthDecoder",
            _depth_decoder,
            _depth_decoder_inputs,
            published={"MiniMax/MiniMax-Music3": _DEPTH_DECODER},
            unverified={"num_attention_heads": 16},
        ),
    ),
    repositories={
        **dict.fromkeys(
            ("MiniMaxAI/MiniMax-H3", "MiniMax/MiniMax-H3"),
            Repository(
                "diffusers.MiniMaxH3ModularPipeline",
                {
                    "transformer": Component("diffusers.MiniMaxH3Transformer3DModel", "MiniMax/MiniMax-H3"),
                    "vae": Component("diffusers.AutoencoderKLMiniMaxH3", "MiniMax/MiniMax-H3"),
                    "audio_vae": Component("diffusers.AutoencoderKLMiniMaxH3Audio", "MiniMax/MiniMax-H3"),
                    "text_encoder": Component(
                        "transformers.Qwen3VLForConditionalGeneration", "MiniMax/MiniMax-H3-FL2VA"
                    ),
                },
            ),
        ),
        **dict.fromkeys(
            ("MiniMaxAI/MiniMax-Music3", "MiniMax/MiniMax-Music3"),
            Repository(
                "diffusers.MiniMaxMusic3ModularPipeline",
                {
                    "transformer": Component("diffusers.MiniMaxMusic3Transformer1DModel", "MiniMax/MiniMax-Music3"),
                    "condition_encoder": Component("diffusers.MiniMaxMusic3ConditionEncoder", "MiniMax/MiniMax-Music3"),
                    "vocoder": Component("diffusers.MiniMaxMusic3Vocoder", "MiniMax/MiniMax-Music3"),
                    "rvq_depth_decoder": Component("diffusers.MiniMaxMusic3RVQDepthDecoder", "MiniMax/MiniMax-Music3"),
                    "language_model": Component("transformers.Qwen3ForCausalLM", "MiniMax/MiniMax-Music3"),
                },
            ),
        ),
    },
)
