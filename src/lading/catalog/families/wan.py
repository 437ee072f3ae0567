"""Wan 2.1 and 2.2: films from prompts, pictures, poses and other films. https://github.com/Wan-Video"""

from __future__ import annotations

from dataclasses import replace
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
    ObjectSpec,
    Repository,
)
from lading.catalog.families import _causal_vae, _wan_layouts
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, entry, every
from lading.latents.frames import FrameRule

_HEAD_DIM = 128
"""Of every published model; the norms span all heads, so that shapes do not tell it."""

_14B = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": _HEAD_DIM,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_1_3B = {**_14B, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_I2V = {**_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
_SMALL_I2V = {**_1_3B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 1536}
_VACE = {"vace_layers": list(range(0, 40, 5)), "vace_in_channels": 96}
_ANIMATE_2 = {
    "patch_size": (1, 2, 2),
    "in_dim": 36,
    "dim": 5120,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "text_dim": 4096,
    "out_dim": 16,
    "num_heads": 40,
    "num_layers": 40,
    "cross_attn_norm": True,
    "use_img_emb": True,
}
_ANIMATE = {
    **_I2V,
    "latent_channels": 16,
    "motion_encoder_size": 512,
    "motion_style_dim": 512,
    "motion_dim": 20,
    "motion_encoder_dim": 512,
    "face_encoder_hidden_dim": 1024,
    "face_encoder_num_heads": 4,
    "inject_face_latents_blocks": 5,
}
_VAE = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_spatial": 8,
}
_VAE_2_2: Config = {
    **_VAE,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": (
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ),
    "latents_std": (
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, *patch = shapes.shape("patch_embedding.weight")
    image = "condition_embedder.image_embedder"
    position = f"{image}.pos_embed"
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": quotient(width, _HEAD_DIM, "heads"),
        "attention_head_dim": _HEAD_DIM,
        "in_channels": in_channels,
        "out_channels": quotient(shapes.size("proj_out.weight"), prod(patch), "channels of a patch"),
        "text_dim": shapes.size("condition_embedder.text_embedder.linear_1.weight", 1),
        "freq_dim": shapes.size("condition_embedder.time_embedder.linear_1.weight", 1),
        "ffn_dim": shapes.size("blocks.{n}.ffn.net.0.proj.weight"),
        "num_layers": shapes.count("blocks"),
        "cross_attn_norm": shapes.has("blocks.{n}.norm2.weight"),
        "image_dim": shapes.size(f"{image}.norm1.weight") if shapes.has(f"{image}.norm1.weight") else None,
        "added_kv_proj_dim": width if shapes.has("blocks.{n}.attn2.add_k_proj.weight") else None,
        "pos_embed_seq_len": shapes.size(position, 1) if shapes.has(position) else None,
    }


def _vace(shapes: Shapes) -> dict[str, Any]:
    config = _transformer(shapes)
    blocks = shapes.count("vace_blocks")
    stride = max(config["num_layers"] // max(blocks, 1), 1)
    return {
        **config,
        "vace_layers": [number * stride for number in range(blocks)],
        "vace_in_channels": shapes.size("vace_patch_embedding.weight", 1),
    }


def _animate(shapes: Shapes) -> dict[str, Any]:
    config, face = _transformer(shapes), shapes.size("face_encoder.out_proj.weight", 1)
    return {
        **config,
        "latent_channels": shapes.size("pose_patch_embedding.weight", 1),
        # Each residual block of the motion encoder halves the picture of the face, down to four pixels.
        "motion_encoder_size": 4 * 2 ** shapes.count("motion_encoder.res_blocks"),
        "motion_style_dim": shapes.size("motion_encoder.motion_network.0.weight", 1),
        "motion_dim": shapes.size("motion_encoder.motion_synthesis_weight", 1),
        "motion_encoder_dim": shapes.size("motion_encoder.motion_synthesis_weight"),
        "face_encoder_hidden_dim": face,
        "face_encoder_num_heads": quotient(shapes.size("face_encoder.conv1_local.weight"), face, "heads"),
        "inject_face_latents_blocks": quotient(config["num_layers"], shapes.count("face_adapter"), "adapters"),
    }


def _animate_2(shapes: Shapes) -> dict[str, Any]:
    width, in_dim, *patch = shapes.shape("patch_embedding.weight")
    return {
        "patch_size": tuple(patch),
        "in_dim": in_dim,
        "dim": width,
        "ffn_dim": shapes.size("blocks.{n}.ffn.0.weight"),
        "freq_dim": shapes.size("time_embedding.0.weight", 1),
        "text_dim": shapes.size("text_embedding.0.weight", 1),
        "out_dim": quotient(shapes.size("head.head.weight"), prod(patch), "channels of a patch"),
        "num_heads": quotient(width, _HEAD_DIM, "heads"),
        "num_layers": shapes.count("blocks"),
        "cross_attn_norm": shapes.has("blocks.{n}.norm3.weight"),
        "use_img_emb": shapes.has("img_emb.proj.1.weight"),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    in_channels = shapes.size("encoder.conv_in.weight", 1)
    sizes = {
        "in_channels": in_channels,
        "out_channels": shapes.size("decoder.conv_out.weight"),
        "patch_size": 2 if in_channels == 12 else None,
    }
    if not shapes.has("encoder.down_blocks.0.resnets.0.conv1.weight"):
        flat = _causal_vae.infer_flat(shapes)
        return {**flat, **sizes, "decoder_base_dim": None, "is_residual": False, "scale_factor_spatial": 8}
    base, blocks = shapes.size("encoder.conv_in.weight"), "encoder.down_blocks"
    depth = shapes.count(blocks)
    widths = [shapes.size(f"{blocks}.{level}.resnets.0.conv1.weight") for level in range(depth)]
    return {
        "base_dim": base,
        "decoder_base_dim": quotient(shapes.size("decoder.conv_in.weight"), widths[-1] // base, "width"),
        "z_dim": shapes.size("decoder.conv_in.weight", 1),
        "dim_mult": [quotient(width, base, "width") for width in widths],
        "num_res_blocks": shapes.count(f"{blocks}.0.resnets"),
        "temperal_downsample": [
            shapes.has(f"{blocks}.{level}.downsampler.time_conv.weight") for level in range(depth - 1)
        ],
        "is_residual": True,
        "scale_factor_spatial": 16,
        **sizes,
    }


def _transformer_inputs(config: Config, extent: Extent) -> Inputs:
    frames = (extent.num_frames - 1) // 4 + 1
    spatial = _VAE_2_2["scale_factor_spatial"] if config["out_channels"] == _VAE_2_2["z_dim"] else 8
    height, width = extent.height // spatial, extent.width // spatial
    across = frames * prod((height // config["patch_size"][1], width // config["patch_size"][2]))
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, config["in_channels"], frames, height, width)),
        # Where the first frame is a given picture, each token has a time of its own.
        "timestep": InputSpec((extent.batch, across) if spatial == 16 else (extent.batch,)),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["text_dim"])),
    }
    if config.get("image_dim"):
        pictures = 2 if config.get("pos_embed_seq_len") else 1
        tokens = config["pos_embed_seq_len"] // 2 if pictures == 2 else 257
        inputs["encoder_hidden_states_image"] = InputSpec((extent.batch * pictures, tokens, config["image_dim"]))
    return inputs


def _vace_inputs(config: Config, extent: Extent) -> Inputs:
    inputs = _transformer_inputs(config, extent)
    batch, _, *sizes = inputs["hidden_states"].shape
    inputs["control_hidden_states"] = InputSpec((batch, config["vace_in_channels"], *sizes))
    return inputs


def _animate_inputs(config: Config, extent: Extent) -> Inputs:
    inputs = _transformer_inputs(config, extent)
    batch, channels, frames, *sizes = inputs["hidden_states"].shape
    face = config["motion_encoder_size"]
    return {
        **inputs,
        "hidden_states": InputSpec((batch, channels, frames + 1, *sizes)),  # the reference picture comes first
        "pose_hidden_states": InputSpec((batch, config["latent_channels"], frames, *sizes)),
        "face_pixel_values": InputSpec((batch, 3, extent.num_frames, face, face)),
    }


def _animate_2_inputs(config: Config, extent: Extent) -> Inputs:
    """The first of its calls, which fills the cache of keys and values from the reference."""
    frames, height, width = (extent.num_frames - 1) // 4 + 1, extent.height // 8, extent.width // 8
    _, down, right = config["patch_size"]
    grid = (frames, height // down, width // right)
    channels = config["out_dim"]
    inputs: Inputs = {
        "hidden_states": [InputSpec((channels, frames, height, width))] * extent.batch,
        "timestep": InputSpec((extent.batch,)),
        "encoder_hidden_states": [InputSpec((extent.tokens, config["text_dim"]))] * extent.batch,
        "condition_latents": [InputSpec((config["in_dim"] - channels, frames, height, width))] * extent.batch,
        "kv_cache": ObjectSpec(
            "diffusers.models.transformers.transformer_wan_animate_2.WanAnimate2KVCache",
            {"num_layers": config["num_layers"]},
        ),
        "kv_cache_mode": "extract",
        "seq_len": prod(grid),
        "offset_grid_sizes": InputSpec((extent.batch, 3), "int64", (grid,) * extent.batch),
    }
    if config["use_img_emb"]:
        inputs["encoder_hidden_states_image"] = InputSpec((extent.batch, 257, 1280))
    return inputs


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    return _causal_vae.inputs(3, config, extent)


def _not_in_the_class(shapes: Shapes) -> dict[str, str]:
    """Fun-Control's convolution of a reference picture, which diffusers' transformer has not."""
    return {name: "a convolution of the reference picture" for name in shapes if name.startswith("ref_conv.")}


_UNVERIFIED = {"num_attention_heads": 40, "attention_head_dim": _HEAD_DIM}
_AUTOENCODER = AutoencoderEntries(
    entry("scale_factor_spatial"), frames=every(entry("scale_factor_temporal")), channels=entry("z_dim")
)
_LATENT = LatentNumbers(
    ("batch", "channels", "frames", "height", "width"),
    16,
    spatial=8,
    temporal=4,
    patch=2,
    guidance="passes",
    autoencoder=_AUTOENCODER,
)
_ANIMATE_LATENT = replace(  # the picture that is animated is a frame of its own
    _LATENT,
    temporal=FrameRule(4, first_latents=2),
    autoencoder=replace(_AUTOENCODER, frames=every(entry("scale_factor_temporal"), first_latents=2)),
)
_LORA = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


_SETTINGS: dict[str, Config] = {
    "Wan-AI/Wan2.2-T2V-A14B": {"boundary_ratio": 0.875},
    "Wan-AI/Wan2.2-I2V-A14B": {"boundary_ratio": 0.9},
    "Wan-AI/Wan2.2-TI2V-5B": {"expand_timesteps": True},
}
"""Source: the `model_index.json` of each."""


def _repository(name: str, pipeline: str, transformer: str = "WanTransformer3DModel") -> Repository:
    denoiser = f"diffusers.{transformer}"
    vae = name if name == "Wan-AI/Wan2.2-TI2V-5B" else "Wan-AI/Wan2.1-T2V-14B"
    parts = {
        "transformer": Component(denoiser, name),
        "vae": Component("diffusers.AutoencoderKLWan", vae),
        "text_encoder": Component("transformers.UMT5EncoderModel", "google/umt5-xxl"),
    }
    if "A14B" in name:
        parts["transformer"] = Component(denoiser, name, ("high_noise",))
        parts["transformer_2"] = Component(denoiser, name, ("low_noise",))
    if any(word in name for word in ("2.1-I2V", "FLF2V", "Animate")):
        parts["image_encoder"] = Component("transformers.CLIPVisionModel", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    return Repository(f"diffusers.{pipeline}", parts, settings=_SETTINGS.get(name, {}))


FAMILY = Family(
    "wan",
    (
        Architecture(
            "transformer",
            "diffusers.WanTransformer3DModel",
            _transformer,
            _transformer_inputs,
            published={
                "Wan-AI/Wan2.1-T2V-1.3B": _1_3B,
                "Wan-AI/Wan2.1-T2V-14B": _14B,
                "Wan-AI/Wan2.2-T2V-A14B": _14B,
                "Wan-AI/Wan2.1-I2V-14B-480P": _I2V,
                "Wan-AI/Wan2.1-I2V-14B-720P": _I2V,
                "PAI/Wan2.1-Fun-14B-InP": _I2V,
                "Wan-AI/Wan2.1-FLF2V-14B-720P": {**_I2V, "pos_embed_seq_len": 514},
                "Wan-AI/Wan2.2-I2V-A14B": {**_14B, "in_channels": 36},
                "Wan-AI/Wan2.2-TI2V-5B": {
                    **_14B,
                    "num_attention_heads": 24,
                    "in_channels": 48,
                    "out_channels": 48,
                    "ffn_dim": 14336,
                    "num_layers": 30,
                },
                "PAI/Wan2.1-Fun-1.3B-InP": _SMALL_I2V,
                "PAI/Wan2.1-Fun-1.3B-Control": {**_SMALL_I2V, "in_channels": 48},
                "PAI/Wan2.1-Fun-14B-Control": {**_I2V, "in_channels": 48},
                "PAI/Wan2.2-Fun-A14B-Control": {**_14B, "in_channels": 52},
            },
            layouts={"original": _wan_layouts.TRANSFORMER},
            unverified=_UNVERIFIED,
            beside=("ref_conv.{leaf}",),
            extras=_not_in_the_class,
            lora_targets=_LORA,
            kohya_layout=lambda _: "original",
            latent=_LATENT,
        ),
        Architecture(
            "transformer",
            "diffusers.WanVACETransformer3DModel",
            _vace,
            _vace_inputs,
            published={
                "Wan-AI/Wan2.1-VACE-1.3B": {**_1_3B, "vace_layers": list(range(0, 30, 2)), "vace_in_channels": 96},
                "Wan-AI/Wan2.1-VACE-14B": {**_14B, **_VACE},
            },
            layouts={"original": _wan_layouts.VACE},
            examples=({**_I2V, **_VACE, "num_layers": 1, "vace_layers": [0], "pos_embed_seq_len": 514},),
            unverified={**_UNVERIFIED, "vace_layers": _VACE["vace_layers"]},
            lora_targets=_LORA,
            latent=_LATENT,
        ),
        Architecture(
            "transformer",
            "diffusers.WanAnimateTransformer3DModel",
            _animate,
            _animate_inputs,
            published={"Wan-AI/Wan2.2-Animate-14B": _ANIMATE},
            layouts={"original": _wan_layouts.original_animate},
            unverified=_UNVERIFIED,
            beside=(
                "motion_encoder.enc.net_app.convs.{n}.conv{i}.{m}.kernel",
                "motion_encoder.enc.net_app.convs.{n}.skip.{m}.kernel",
            ),
            lora_targets=_LORA,
            latent=_ANIMATE_LATENT,
        ),
        Architecture(
            "transformer",
            "diffusers.WanAnimate2Transformer3DModel",
            _animate_2,
            _animate_2_inputs,
            published={"Wan-AI/Wan2.2-Animate-2-14B": _ANIMATE_2},
            layouts={"original": _wan_layouts.ANIMATE_2},
            unverified={"num_heads": 40},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=replace(_LATENT, channels_entry="out_dim"),
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderKLWan",
            _vae,
            _vae_inputs,
            published={"Wan-AI/Wan2.1-T2V-14B": _VAE, "Wan-AI/Wan2.2-TI2V-5B": _VAE_2_2},
            layouts={"original": _wan_layouts.original_vae},
            unverified={"scale_factor_spatial": 8, "patch_size": None, "latents_mean": None, "latents_std": None},
        ),
    ),
    repositories={
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _repository("Wan-AI/Wan2.1-T2V-1.3B", "WanPipeline"),
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": _repository("Wan-AI/Wan2.1-T2V-14B", "WanPipeline"),
        **{
            f"{name}-{word}": _repository(name, "WanImageToVideoPipeline")
            for name, word in (
                ("Wan-AI/Wan2.1-I2V-14B-480P", "Diffusers"),
                ("Wan-AI/Wan2.1-I2V-14B-720P", "Diffusers"),
                ("Wan-AI/Wan2.1-FLF2V-14B-720P", "diffusers"),
                ("Wan-AI/Wan2.2-I2V-A14B", "Diffusers"),
            )
        },
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _repository("Wan-AI/Wan2.2-T2V-A14B", "WanPipeline"),
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _repository("Wan-AI/Wan2.2-TI2V-5B", "WanPipeline"),
        **{
            f"Wan-AI/Wan2.1-VACE-{size}-diffusers": _repository(
                f"Wan-AI/Wan2.1-VACE-{size}", "WanVACEPipeline", "WanVACETransformer3DModel"
            )
            for size in ("1.3B", "14B")
        },
        "Wan-AI/Wan2.2-Animate-14B-Diffusers": _repository(
            "Wan-AI/Wan2.2-Animate-14B", "WanAnimatePipeline", "WanAnimateTransformer3DModel"
        ),
        "Wan-AI/Wan2.2-Animate-2-14B": _repository(
            "Wan-AI/Wan2.2-Animate-2-14B", "WanAnimate2ModularPipeline", "WanAnimate2Transformer3DModel"
        ),
    },
)
