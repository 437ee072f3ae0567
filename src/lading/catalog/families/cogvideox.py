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
from lading.catalog.keymap import KeyMap, Rule, rename, split, split_heads
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


_ENDS = (
    ("mixins.patch_embed.{rest}", "patch_embed.{rest}"),
    ("time_embed.0.{leaf}", "time_embedding.linear_1.{leaf}"),
    ("time_embed.2.{leaf}", "time_embedding.linear_2.{leaf}"),
    ("ofs_embed.0.{leaf}", "ofs_embedding.linear_1.{leaf}"),
    ("ofs_embed.2.{leaf}", "ofs_embedding.linear_2.{leaf}"),
    ("transformer.final_layernorm.{leaf}", "norm_final.{leaf}"),
    ("mixins.final_layer.norm_final.{leaf}", "norm_out.norm.{leaf}"),
    ("mixins.final_layer.linear.{leaf}", "proj_out.{leaf}"),
    ("mixins.final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
)
_LAYER = (
    ("attention.dense.{leaf}", "attn1.to_out.0.{leaf}"),
    ("mlp.dense_h_to_4h.{leaf}", "ff.net.0.proj.{leaf}"),
    ("mlp.dense_4h_to_h.{leaf}", "ff.net.2.{leaf}"),
    ("input_layernorm.{leaf}", "norm1.norm.{leaf}"),
    ("post_attention_layernorm.{leaf}", "norm2.norm.{leaf}"),
)


def _original(shapes: Shapes) -> KeyMap:
    """Zhipu's own names, of SwissArmyTransformer; a layer's norms share one modulation, of text and film by turns."""
    file, model = "transformer.layers.{n}", "transformer_blocks.{n}"
    norm = f"{model}.norm1.norm.weight"
    width = shapes.size(norm if shapes.has(norm) else f"{file}.input_layernorm.weight")
    rules = [
        *_position(shapes),
        *(rename(old, new) for old, new in _ENDS),
        *(rename(f"{file}.{old}", f"{model}.{new}") for old, new in _LAYER),
        split(f"{file}.attention.query_key_value.{{leaf}}", *(f"{model}.attn1.to_{name}.{{leaf}}" for name in "qkv")),
        split_heads(
            "mixins.adaln_layer.adaLN_modulations.{n}.1.{leaf}",
            *(f"{model}.norm{number}.linear.{{leaf}}" for number in (1, 2)),
            head=3 * width,
        ),
        rename("mixins.adaln_layer.query_layernorm_list.{n}.{leaf}", f"{model}.attn1.norm_q.{{leaf}}"),
        rename("mixins.adaln_layer.key_layernorm_list.{n}.{leaf}", f"{model}.attn1.norm_k.{{leaf}}"),
    ]
    return KeyMap(tuple(rules))


def _position(shapes: Shapes) -> list[Rule]:
    """Positions are learned where a picture comes beside the latent; what others have in the file is computed."""
    proj = "mixins.patch_embed.proj.weight"
    learned = shapes.has("patch_embed.pos_embedding")
    if shapes.has(proj) and len(shapes.shape(proj)) == 4:
        channels, patch = shapes.shape(proj)[1:3]
        learned = channels * patch**2 > shapes.size("mixins.final_layer.linear.weight")
    return [rename("mixins.pos_embed.pos_embedding", "patch_embed.pos_embedding")] if learned else []


def _original_vae(shapes: Shapes) -> KeyMap:
    """CompVis' names; the decoder counts its levels the other way round."""
    depth = max(shapes.count("encoder.down"), shapes.count("encoder.down_blocks"))
    rules: list[Rule] = []
    for half, way, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        for number in (1, 2):
            block = f"{half}.mid_block.resnets.{number - 1}"
            rules.append(rename(f"{half}.mid.block_{number}.{{rest}}", f"{block}.{{rest}}"))
        for level in range(depth):
            file, model = (
                f"{half}.{way}.{level}",
                f"{half}.{way}_blocks.{level if way == 'down' else depth - 1 - level}",
            )
            resnet = f"{model}.resnets.{{m}}"
            rules += [
                rename(f"{file}.block.{{m}}.nin_shortcut.{{rest}}", f"{resnet}.conv_shortcut.{{rest}}"),
                rename(f"{file}.block.{{m}}.{{rest}}", f"{resnet}.{{rest}}"),
                rename(f"{file}.{sampler}.{{rest}}", f"{model}.{way}samplers.0.{{rest}}"),
            ]
    return KeyMap((*rules, rename("{rest}", "{rest}")))


def _repository(name: str, pipeline: str) -> Repository:
    vae = "zai-org/CogVideoX-2b" if name.endswith("2b") else "zai-org/CogVideoX-5b"
    if "1.5" in name:
        vae = "zai-org/CogVideoX1.5-5B"
    parts = {
        "transformer": Component("diffusers.CogVideoXTransformer3DModel", name),
        "vae": Component("diffusers.AutoencoderKLCogVideoX", vae),
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
            layouts={"original": _original},
            beside=(
                "mixins.pos_embed.{leaf}",
                "transformer.word_embeddings.{leaf}",
                "transformer.position_embeddings.{leaf}",
            ),
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
            published={
                "zai-org/CogVideoX-2b": _VAE,
                "zai-org/CogVideoX-5b": {**_VAE, "scaling_factor": 0.7},
                "zai-org/CogVideoX1.5-5B": {**_VAE, "scaling_factor": 0.7, "invert_scale_latents": True},
            },
            layouts={"original": _original_vae},
            beside=("loss.{rest}",),
            unverified={"scaling_factor": 1.15258426, "invert_scale_latents": False},
        ),
    ),
    repositories={
        name: _repository(name, pipeline)
        for name, pipeline in {
            "zai-org/CogVideoX-2b": "CogVideoXPipeline",
            "zai-org/CogVideoX-5b": "CogVideoXPipeline",
            "zai-org/CogVideoX-5b-I2V": "CogVideoXImageToVideoPipeline",
            "zai-org/CogVideoX1.5-5B": "CogVideoXPipeline",
            "zai-org/CogVideoX1.5-5B-I2V": "CogVideoXImageToVideoPipeline",
        }.items()
    },
)
