"""Beside LTX's transformers: autoencoders of films and of sound, vocoders, connectors of the text encoder."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Inputs, InputSpec
from lading.catalog.families import _ltx_layouts
from lading.catalog.families._arrangement import published_arrangement
from lading.catalog.shapes import Shapes, quotient

_VAE_0_9 = {
    "latent_channels": 128,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "decoder_block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("conv",) * 4,
    "upsample_residual": (False,) * 4,
    "upsample_factor": (1,) * 4,
    "timestep_conditioning": False,
    "decoder_causal": False,
}
_VAE_0_9_1 = {
    **_VAE_0_9,
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_layers_per_block": (5, 6, 7, 8),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (True, True, True, False),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
}
_SAMPLED = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
_VAE_0_9_5 = {
    **_VAE_0_9_1,
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": _SAMPLED,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_VAES = {
    "Lightricks/LTX-Video": _VAE_0_9,
    "Lightricks/LTX-Video-0.9.1": _VAE_0_9_1,
    "Lightricks/LTX-Video-0.9.5": _VAE_0_9_5,
    "Lightricks/LTX-Video-0.9.7-dev": _VAE_0_9_5,
}
_LTX2_VAE = {
    "latent_channels": 128,
    "block_out_channels": (256, 512, 1024, 2048),
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": _SAMPLED,
    "upsample_type": ("spatiotemporal",) * 3,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": False,
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "reflect",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_LTX2_VAES = {
    "Lightricks/LTX-2": _LTX2_VAE,
    "Lightricks/LTX-2.3": {
        **_LTX2_VAE,
        "block_out_channels": (256, 512, 1024, 1024),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}
_AUDIO_VAE = {
    "base_channels": 128,
    "in_channels": 2,
    "output_channels": 2,
    "ch_mult": (1, 2, 4),
    "num_res_blocks": 2,
    "latent_channels": 8,
    "mel_bins": 64,
}
_LTX2_AUDIO_VAES = {"Lightricks/LTX-2": _AUDIO_VAE, "Lightricks/LTX-2.3": _AUDIO_VAE}
_VOCODERS = {
    "Lightricks/LTX-2": {
        "in_channels": 128,
        "hidden_channels": 1024,
        "out_channels": 2,
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        "upsample_factors": [6, 5, 2, 2, 2],
    }
}
_WIDE_VOCODERS = {
    "Lightricks/LTX-2.3": {
        "in_channels": 128,
        "hidden_channels": 1536,
        "out_channels": 2,
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        "upsample_factors": [5, 2, 2, 2, 2, 2],
    }
}
_CONNECTORS = {
    "Lightricks/LTX-2": {
        "caption_channels": 3840,
        "text_proj_in_factor": 49,
        "video_connector_num_attention_heads": 30,
        "video_connector_num_layers": 2,
        "video_gated_attn": False,
        "audio_connector_num_attention_heads": 30,
        "audio_connector_attention_head_dim": 128,
        "audio_connector_num_layers": 2,
        "audio_gated_attn": False,
        "rope_type": "split",
        "per_modality_projections": False,
        "proj_bias": False,
    },
    "Lightricks/LTX-2.3": {
        "caption_channels": 3840,
        "text_proj_in_factor": 49,
        "video_connector_num_attention_heads": 32,
        "video_connector_num_layers": 8,
        "video_gated_attn": True,
        "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64,
        "audio_connector_num_layers": 8,
        "audio_gated_attn": True,
        "rope_type": "split",
        "per_modality_projections": True,
        "proj_bias": True,
    },
}


def _levels(shapes: Shapes) -> dict[str, Any]:
    """What shapes tell of either autoencoder."""
    down, up = range(shapes.count("encoder.down_blocks")), range(shapes.count("decoder.up_blocks"))
    return {
        "latent_channels": shapes.size("decoder.conv_in.conv.weight", 1),
        "layers_per_block": (
            *(shapes.count(f"encoder.down_blocks.{level}.resnets") for level in down),
            shapes.count("encoder.mid_block.resnets"),
        ),
        "decoder_layers_per_block": (
            *(shapes.count(f"decoder.up_blocks.{level}.resnets") for level in reversed(up)),
            shapes.count("decoder.mid_block.resnets"),
        ),
        "timestep_conditioning": shapes.has("decoder.timestep_scale_multiplier"),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    return published_arrangement(_levels(shapes), _VAES)


def _ltx2_vae(shapes: Shapes) -> dict[str, Any]:
    return published_arrangement(_levels(shapes), _LTX2_VAES)


def _ltx2_audio_vae(shapes: Shapes) -> dict[str, Any]:
    base, in_channels, *_ = shapes.shape("encoder.conv_in.conv.weight")
    levels = range(shapes.count("encoder.down"))
    widths = [shapes.size(f"encoder.down.{level}.block.0.conv1.conv.weight") for level in levels]
    return {
        "base_channels": base,
        "in_channels": in_channels,
        "output_channels": shapes.size("decoder.conv_out.conv.weight"),
        "ch_mult": tuple(quotient(width, base, "channels") for width in widths),
        "num_res_blocks": shapes.count("encoder.down.0.block"),
        "latent_channels": shapes.size("decoder.conv_in.conv.weight", 1),
    }


def _vocoder(shapes: Shapes) -> dict[str, Any]:
    return published_arrangement(_generator(shapes), _VOCODERS)


def _wide_vocoder(shapes: Shapes) -> dict[str, Any]:
    return published_arrangement(_generator(shapes.under("vocoder.")), _WIDE_VOCODERS)


def _generator(shapes: Shapes) -> dict[str, Any]:
    hidden, channels, _ = shapes.shape("conv_in.weight")
    kernels = [shapes.size(f"upsamplers.{number}.weight", 2) for number in range(shapes.count("upsamplers"))]
    out = shapes.size("conv_out.weight")
    return {
        "in_channels": channels,
        "hidden_channels": hidden,
        "out_channels": out,
        "upsample_kernel_sizes": kernels,
    }


def _connectors(shapes: Shapes) -> dict[str, Any]:
    told = {
        f"{side}_connector_num_layers": shapes.count(f"{side}_connector.transformer_blocks")
        for side in ("video", "audio")
    }
    split = shapes.has("video_text_proj_in.weight")
    joined = shapes.size("video_text_proj_in.weight" if split else "text_proj_in.weight", 1)
    told |= {"per_modality_projections": split, "text_proj_in_factor": quotient(joined, 3840, "layers of the encoder")}
    return published_arrangement(told, _CONNECTORS)


def _connectors_inputs(config: Config, extent: Extent) -> Inputs:
    tokens = 128  # as many as there are registers, or a multiple
    joined = config["caption_channels"] * config["text_proj_in_factor"]
    return {
        "text_encoder_hidden_states": InputSpec((extent.batch, tokens, joined)),
        "attention_mask": InputSpec((extent.batch, tokens), "int64"),
    }


def _vocoder_inputs(config: Config, extent: Extent) -> Inputs:
    channels = config["out_channels"]
    bins = config["in_channels"] // channels
    return {"hidden_states": InputSpec((extent.batch, channels, 25 * extent.num_frames, bins))}


def _wide_vocoder_inputs(config: Config, extent: Extent) -> Inputs:
    return {"mel_spec": _vocoder_inputs(config, extent)["hidden_states"]}


def _audio_vae_inputs(config: Config, extent: Extent) -> Inputs:
    return {"sample": InputSpec((extent.batch, config["in_channels"], 16 * extent.num_frames, config["mel_bins"]))}


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    inputs: Inputs = {"sample": InputSpec((extent.batch, 3, extent.num_frames, extent.height, extent.width))}
    return {**inputs, "temb": InputSpec((extent.batch,))} if config["timestep_conditioning"] else inputs


BESIDE_THE_TRANSFORMERS = (
    Architecture(
        "vae",
        "diffusers.AutoencoderKLLTXVideo",
        _vae,
        _vae_inputs,
        _VAES,
        {"original": _ltx_layouts.original_vae},
        beside=_ltx_layouts.STATISTICS,
    ),
    Architecture(
        "vae",
        "diffusers.AutoencoderKLLTX2Video",
        _ltx2_vae,
        _vae_inputs,
        _LTX2_VAES,
        {"original": _ltx_layouts.original_vae},
        beside=_ltx_layouts.STATISTICS,
    ),
    Architecture(
        "audio_vae",
        "diffusers.AutoencoderKLLTX2Audio",
        _ltx2_audio_vae,
        _audio_vae_inputs,
        _LTX2_AUDIO_VAES,
        {"original": _ltx_layouts.AUDIO_VAE},
        unverified={"mel_bins": 64},
    ),
    Architecture(
        "vocoder",
        "diffusers.pipelines.ltx2.LTX2Vocoder",
        _vocoder,
        _vocoder_inputs,
        _VOCODERS,
        {"original": _ltx_layouts.VOCODER},
    ),
    Architecture(
        "vocoder",
        "diffusers.pipelines.ltx2.LTX2VocoderWithBWE",
        _wide_vocoder,
        _wide_vocoder_inputs,
        _WIDE_VOCODERS,
        {"original": _ltx_layouts.WIDE_VOCODER},
    ),
    Architecture(
        "connectors",
        "diffusers.pipelines.ltx2.LTX2TextConnectors",
        _connectors,
        _connectors_inputs,
        _CONNECTORS,
        {"original": _ltx_layouts.CONNECTORS},
    ),
)
