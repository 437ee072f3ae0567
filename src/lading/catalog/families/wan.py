"""Wan 2.1 and 2.2: films from prompts, pictures, poses and other films. https://github.com/Wan-Video"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec, LatentNumbers
from lading.catalog.families import _causal_vae
from lading.catalog.keymap import KeyMap, Rule, rename
from lading.catalog.shapes import Shapes, UnknownSizeError, quotient
from lading.latents.compression import AutoencoderEntries, entry, every

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
_VAE_2_2 = {
    **_VAE,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
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
    latent = (extent.batch, config["in_channels"], frames, extent.height // 8, extent.width // 8)
    inputs: Inputs = {
        "hidden_states": InputSpec(latent),
        "timestep": InputSpec((extent.batch,)),
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


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    return _causal_vae.inputs(3, config, extent)


def _not_in_the_class(shapes: Shapes) -> dict[str, str]:
    """Fun-Control's convolution of a reference picture, which diffusers' transformer has not."""
    return {name: "a convolution of the reference picture" for name in shapes if name.startswith("ref_conv.")}


def _attention(file: str, model: str) -> list[Rule]:
    pairs = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    image = (("k_img", "add_k_proj"), ("v_img", "add_v_proj"), ("norm_k_img", "norm_added_k"))
    return [rename(f"{file}.{old}.{{leaf}}", f"{model}.{new}.{{leaf}}") for old, new in (*pairs, *image)]


def _block(name: str) -> list[Rule]:
    block = f"{name}.{{n}}."
    return [
        rename(f"{block}modulation", f"{block}scale_shift_table"),
        *_attention(f"{block}self_attn", f"{block}attn1"),
        *_attention(f"{block}cross_attn", f"{block}attn2"),
        rename(f"{block}norm3.{{leaf}}", f"{block}norm2.{{leaf}}"),
        rename(f"{block}ffn.0.{{leaf}}", f"{block}ffn.net.0.proj.{{leaf}}"),
        rename(f"{block}ffn.2.{{leaf}}", f"{block}ffn.net.2.{{leaf}}"),
    ]


_ORIGINAL = (
    rename("patch_embedding.{leaf}", "patch_embedding.{leaf}"),
    rename("time_embedding.0.{leaf}", "condition_embedder.time_embedder.linear_1.{leaf}"),
    rename("time_embedding.2.{leaf}", "condition_embedder.time_embedder.linear_2.{leaf}"),
    rename("time_projection.1.{leaf}", "condition_embedder.time_proj.{leaf}"),
    rename("text_embedding.0.{leaf}", "condition_embedder.text_embedder.linear_1.{leaf}"),
    rename("text_embedding.2.{leaf}", "condition_embedder.text_embedder.linear_2.{leaf}"),
    rename("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    rename("img_emb.proj.0.{leaf}", "condition_embedder.image_embedder.norm1.{leaf}"),
    rename("img_emb.proj.1.{leaf}", "condition_embedder.image_embedder.ff.net.0.proj.{leaf}"),
    rename("img_emb.proj.3.{leaf}", "condition_embedder.image_embedder.ff.net.2.{leaf}"),
    rename("img_emb.proj.4.{leaf}", "condition_embedder.image_embedder.norm2.{leaf}"),
    *_block("blocks"),
    rename("head.modulation", "scale_shift_table"),
    rename("head.head.{leaf}", "proj_out.{leaf}"),
)
_VACE_RULES = (
    rename("vace_patch_embedding.{leaf}", "vace_patch_embedding.{leaf}"),
    rename("vace_blocks.{n}.before_proj.{leaf}", "vace_blocks.{n}.proj_in.{leaf}"),
    rename("vace_blocks.{n}.after_proj.{leaf}", "vace_blocks.{n}.proj_out.{leaf}"),
    *_block("vace_blocks"),
)
_ANIMATE_2_RULES = (
    *_attention("blocks.{n}.block.self_attn", "blocks.{n}.self_attn"),
    *_attention("blocks.{n}.block.cross_attn", "blocks.{n}.cross_attn"),
    rename("blocks.{n}.block.{rest}", "blocks.{n}.{rest}"),
    *(
        rename(f"{name}.{{rest}}", f"{name}.{{rest}}")
        for name in ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "head", "img_emb")
    ),
)


_MOST_LEVELS = 16


def _original_vae(shapes: Shapes) -> KeyMap:
    """Wan's own autoencoders: numbered sequences, in 2.1 one for all levels, in 2.2 one for each."""
    rules = [rename("conv1.{leaf}", "quant_conv.{leaf}"), rename("conv2.{leaf}", "post_quant_conv.{leaf}")]
    for part in ("encoder", "decoder"):
        rules += [
            rename(f"{part}.conv1.{{leaf}}", f"{part}.conv_in.{{leaf}}"),
            *_residual(f"{part}.middle.0", f"{part}.mid_block.resnets.0"),
            *_residual(f"{part}.middle.2", f"{part}.mid_block.resnets.1"),
            rename(f"{part}.middle.1.{{rest}}", f"{part}.mid_block.attentions.0.{{rest}}"),
            rename(f"{part}.head.0.gamma", f"{part}.norm_out.gamma"),
            rename(f"{part}.head.2.{{leaf}}", f"{part}.conv_out.{{leaf}}"),
        ]
    if shapes.has("encoder.downsamples.0.downsamples.0.residual.2.weight") or shapes.has(
        "encoder.down_blocks.0.resnets.0.conv1.weight"
    ):
        return KeyMap((*rules, *_levels(shapes)))
    rules += _residual("encoder.downsamples.{n}", "encoder.down_blocks.{n}")
    rules += _resampling("encoder.downsamples.{n}", "encoder.down_blocks.{n}")
    samplers = shapes.find("decoder.upsamples.{n}.resample.1.weight")
    if samplers:
        layers = int(samplers[0].split(".")[2])
        depth = len(samplers) + 1
    else:
        layers, depth = shapes.count("decoder.up_blocks.0.resnets"), shapes.count("decoder.up_blocks")
    if max(depth, layers) > _MOST_LEVELS:
        raise UnknownSizeError(f"levels that an autoencoder can have: {depth} of {layers} layers")
    for level in range(depth):
        first, block = level * (layers + 1), f"decoder.up_blocks.{level}"
        for layer in range(layers):
            rules += _residual(f"decoder.upsamples.{first + layer}", f"{block}.resnets.{layer}")
        rules += _resampling(f"decoder.upsamples.{first + layers}", f"{block}.upsamplers.0")
    return KeyMap(tuple(rules))


def _levels(shapes: Shapes) -> list[Rule]:
    rules: list[Rule] = []
    for part, word in (("encoder", "down"), ("decoder", "up")):
        old, new = f"{part}.{word}samples.{{n}}.{word}samples", f"{part}.{word}_blocks.{{n}}"
        sampled = shapes.find(f"{old}.{{m}}.resample.1.weight")
        layers = int(sampled[0].split(".")[4]) if sampled else shapes.count(f"{part}.{word}_blocks.0.resnets")
        rules += _resampling(f"{old}.{layers}", f"{new}.{word}sampler")
        rules += _residual(f"{old}.{{m}}", f"{new}.resnets.{{m}}")
    return rules


def _residual(file: str, model: str) -> list[Rule]:
    names = (("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"))
    pairs = (*names, ("shortcut", "conv_shortcut"))
    return [rename(f"{file}.{old}.{{leaf}}", f"{model}.{new}.{{leaf}}") for old, new in pairs]


def _resampling(file: str, model: str) -> list[Rule]:
    return [rename(f"{file}.{name}.{{leaf}}", f"{model}.{name}.{{leaf}}") for name in ("resample.1", "time_conv")]


_UNVERIFIED = {"num_attention_heads": 40, "attention_head_dim": _HEAD_DIM}
_LATENT = LatentNumbers(
    ("batch", "channels", "frames", "height", "width"),
    16,
    spatial=8,
    temporal=4,
    patch=2,
    guidance="passes",
    autoencoder=AutoencoderEntries(
        entry("scale_factor_spatial"), frames=every(entry("scale_factor_temporal")), channels=entry("z_dim")
    ),
)
_LORA = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

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
            layouts={"original": KeyMap(_ORIGINAL)},
            unverified=_UNVERIFIED,
            beside=("ref_conv.{leaf}",),
            extras=_not_in_the_class,
            lora_targets=_LORA,
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
            layouts={"original": KeyMap((*_ORIGINAL, *_VACE_RULES))},
            examples=({**_I2V, **_VACE, "num_layers": 1, "vace_layers": [0], "pos_embed_seq_len": 514},),
            unverified={**_UNVERIFIED, "vace_layers": _VACE["vace_layers"]},
            lora_targets=_LORA,
            latent=_LATENT,
        ),
        Architecture(
            "transformer",
            "diffusers.WanAnimate2Transformer3DModel",
            _animate_2,
            None,  # it is called with a cache of keys and values, once to fill it and then to use it
            published={"Wan-AI/Wan2.2-Animate-2-14B": _ANIMATE_2},
            layouts={"original": KeyMap(_ANIMATE_2_RULES)},
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
            layouts={"original": _original_vae},
            unverified={"scale_factor_spatial": 8, "patch_size": None},
        ),
    ),
)
