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
from lading.catalog.keymap import KeyMap, Rule, rename, split, swap_halves
from lading.catalog.shapes import Shapes, UnknownSizeError, quotient
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


def _inputs(config: Config, extent: Extent) -> Inputs:
    frames, tokens = extent.num_frames // 6 + 1, config["max_sequence_length"]
    latent = (extent.batch, config["in_channels"], frames, extent.height // 8, extent.width // 8)
    return {
        "hidden_states": InputSpec(latent),
        "encoder_hidden_states": InputSpec((extent.batch, tokens, config["text_embed_dim"])),
        "timestep": InputSpec((extent.batch,)),
        "encoder_attention_mask": InputSpec((extent.batch, tokens), "bool"),
    }


_BLOCK = ("blocks.{n}", "transformer_blocks.{n}")


def _attention(side: str, parts: tuple[str, ...], out: str, norms: tuple[str, str]) -> list[Rule]:
    """The attention of the pictures, `x`, or of the text, `y`."""
    file, model = f"{_BLOCK[0]}.attn", f"{_BLOCK[1]}.attn1"
    return [
        split(f"{file}.qkv_{side}.{{leaf}}", *(f"{model}.{part}.{{leaf}}" for part in parts)),
        rename(f"{file}.q_norm_{side}.{{leaf}}", f"{model}.{norms[0]}.{{leaf}}"),
        rename(f"{file}.k_norm_{side}.{{leaf}}", f"{model}.{norms[1]}.{{leaf}}"),
        rename(f"{file}.proj_{side}.{{leaf}}", f"{model}.{out}.{{leaf}}"),
    ]


def _original(shapes: Shapes) -> KeyMap:
    """Genmo's own names; the last block's text only feeds its norm, which is another layer there."""
    last = max(shapes.count("blocks"), shapes.count("transformer_blocks")) - 1
    rules = [
        rename("x_embedder.{rest}", "patch_embed.{rest}"),
        rename("t_embedder.mlp.0.{leaf}", "time_embed.timestep_embedder.linear_1.{leaf}"),
        rename("t_embedder.mlp.2.{leaf}", "time_embed.timestep_embedder.linear_2.{leaf}"),
        rename("t5_y_embedder.{rest}", "time_embed.pooler.{rest}"),
        rename("t5_yproj.{leaf}", "time_embed.caption_proj.{leaf}"),
        rename("pos_frequencies", "pos_frequencies"),
        rename(f"{_BLOCK[0]}.mod_x.{{leaf}}", f"{_BLOCK[1]}.norm1.linear.{{leaf}}"),
        rename(f"blocks.{last}.mod_y.{{leaf}}", f"transformer_blocks.{last}.norm1_context.linear_1.{{leaf}}"),
        rename(f"{_BLOCK[0]}.mod_y.{{leaf}}", f"{_BLOCK[1]}.norm1_context.linear.{{leaf}}"),
        *_attention("x", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k")),
        *_attention("y", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k")),
        swap_halves("final_layer.mod.{leaf}", "norm_out.linear.{leaf}"),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
    ]
    for side, feed_forward in (("x", "ff"), ("y", "ff_context")):
        file, model = f"{_BLOCK[0]}.mlp_{side}", f"{_BLOCK[1]}.{feed_forward}.net"
        rules.append(swap_halves(f"{file}.w1.{{leaf}}", f"{model}.0.proj.{{leaf}}"))  # gate and value
        rules.append(rename(f"{file}.w2.{{leaf}}", f"{model}.2.{{leaf}}"))
    return KeyMap(tuple(rules))


_RESNET = (
    ("stack.0", "norm1.norm_layer"),
    ("stack.2", "conv1.conv"),
    ("stack.3", "norm2.norm_layer"),
    ("stack.5", "conv2.conv"),
)


def _layer(file: str, block: str, layer: str) -> list[Rule]:
    """A layer of the autoencoder: a residual block and, in the encoder, its attention."""
    attention = f"{block}.attentions.{layer}"
    return [
        *(rename(f"{file}.{old}.{{leaf}}", f"{block}.resnets.{layer}.{new}.{{leaf}}") for old, new in _RESNET),
        split(f"{file}.attn_block.attn.qkv.{{leaf}}", *(f"{attention}.to_{name}.{{leaf}}" for name in "qkv")),
        rename(f"{file}.attn_block.attn.out.{{leaf}}", f"{attention}.to_out.0.{{leaf}}"),
        rename(f"{file}.attn_block.norm.{{leaf}}", f"{block}.norms.{layer}.norm_layer.{{leaf}}"),
    ]


_MOST_LAYERS = 16


def _original_autoencoder(shapes: Shapes) -> KeyMap:
    """Genmo's own names, `encoder.` and `decoder.` before them as where both are in one file."""
    if shapes.has("encoder.layers.0.weight"):
        # The encoder is a list of layers, levels, and layers again; the decoder has its first layers in a list.
        levels = [n for n in shapes.numbers("encoder.layers") if shapes.has(f"encoder.layers.{n}.layers.0.weight")]
        first, depth = (levels[0] - 1 if levels else 0), len(levels)
        last = shapes.count("encoder.layers") - first - depth - 1
    else:
        first, last = shapes.count("encoder.block_in.resnets"), shapes.count("encoder.block_out.resnets")
        depth = shapes.count("encoder.down_blocks")
    if max(first, last, depth) > _MOST_LAYERS:
        raise UnknownSizeError(f"layers that an autoencoder can have: {first}, {depth} levels, {last}")
    rules = [
        rename("encoder.layers.0.{leaf}", "encoder.proj_in.{leaf}"),
        rename("encoder.output_norm.{leaf}", "encoder.norm_out.norm_layer.{leaf}"),
        rename("encoder.output_proj.{leaf}", "encoder.proj_out.{leaf}"),
        rename("decoder.blocks.0.0.{leaf}", "decoder.conv_in.{leaf}"),
        rename("decoder.output_proj.{leaf}", "decoder.proj_out.{leaf}"),
        *_layer(f"decoder.blocks.{depth + 1}.{{n}}", "decoder.block_out", "{n}"),
    ]
    for layer in range(first):
        rules += _layer(f"encoder.layers.{layer + 1}", "encoder.block_in", str(layer))
    for layer in range(last):
        rules += _layer(f"encoder.layers.{first + depth + 1 + layer}", "encoder.block_out", str(layer))
        rules += _layer(f"decoder.blocks.0.{layer + 1}", "decoder.block_in", str(layer))
    layers = _MOST_LAYERS  # of a level: the file counts its sampling first
    for level in range(depth):
        file, model = f"encoder.layers.{first + 1 + level}.layers", f"encoder.down_blocks.{level}"
        rules.append(rename(f"{file}.0.{{leaf}}", f"{model}.conv_in.conv.{{leaf}}"))
        for layer in range(layers):
            rules += _layer(f"{file}.{layer + 1}", model, str(layer))
        file, model = f"decoder.blocks.{level + 1}", f"decoder.up_blocks.{level}"
        rules.append(rename(f"{file}.proj.{{leaf}}", f"{model}.proj.{{leaf}}"))
        rules += _layer(f"{file}.blocks.{{n}}", model, "{n}")
    return KeyMap(tuple(rules))


FAMILY = Family(
    "mochi",
    (
        Architecture(
            "transformer",
            "diffusers.MochiTransformer3DModel",
            _transformer,
            _inputs,
            published={"genmo/mochi-1-preview": _PREVIEW},
            layouts={"original": _original},
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
            layouts={"original": _original_autoencoder},
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
