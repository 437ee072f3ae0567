"""Stable Diffusion 3 and 3.5. https://github.com/Stability-AI/sd3.5"""

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
from lading.catalog.keymap import KeyMap, rename, split, swap_halves
from lading.catalog.shapes import Shapes, quotient

_HEAD_DIM = 64
"""Of every published model; told by the norms of queries in 3.5, by nothing in 3."""

_MEDIUM_3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": _HEAD_DIM,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
    "qk_norm": None,
}
_MEDIUM_3_5 = {
    **_MEDIUM_3,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
_LARGE_3_5 = {
    **_MEDIUM_3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, patch, _ = shapes.shape("pos_embed.proj.weight")
    normed = shapes.has("transformer_blocks.{n}.attn.norm_q.weight")
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight") if normed else _HEAD_DIM
    dual = shapes.find("transformer_blocks.{n}.attn2.to_q.weight")
    return {
        "patch_size": patch,
        "in_channels": in_channels,
        "out_channels": quotient(shapes.size("proj_out.weight"), patch**2, "channels of a patch"),
        "num_layers": shapes.count("transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(width, head, "heads"),
        "joint_attention_dim": shapes.size("context_embedder.weight", 1),
        "caption_projection_dim": shapes.size("context_embedder.weight"),
        "pooled_projection_dim": shapes.size("time_text_embed.text_embedder.linear_1.weight", 1),
        "pos_embed_max_size": round(shapes.size("pos_embed.pos_embed", 1) ** 0.5),
        "dual_attention_layers": tuple(int(name.split(".")[1]) for name in dual),
        "qk_norm": "rms_norm" if normed else None,
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    batch = extent.batch
    return {
        "hidden_states": InputSpec((batch, config["in_channels"], extent.height // 8, extent.width // 8)),
        "encoder_hidden_states": InputSpec((batch, extent.tokens, config["joint_attention_dim"])),
        "pooled_projections": InputSpec((batch, config["pooled_projection_dim"])),
        "timestep": InputSpec((batch,)),
    }


def _original(shapes: Shapes) -> KeyMap:
    """Stability's own names; the last block's text only feeds its norm, whose scale and shift stand as in the end."""
    block, target = "joint_blocks.{n}.", "transformer_blocks.{n}."
    last = max(shapes.count("joint_blocks"), shapes.count("transformer_blocks")) - 1
    rules = [
        rename("pos_embed", "pos_embed.pos_embed"),
        rename("x_embedder.proj.{leaf}", "pos_embed.proj.{leaf}"),
        rename("context_embedder.{leaf}", "context_embedder.{leaf}"),
        *(
            rename(
                f"{file}_embedder.mlp.{2 * number - 2}.{{leaf}}", f"time_text_embed.{model}.linear_{number}.{{leaf}}"
            )
            for file, model in (("t", "timestep_embedder"), ("y", "text_embedder"))
            for number in (1, 2)
        ),
        swap_halves(
            f"joint_blocks.{last}.context_block.adaLN_modulation.1.{{leaf}}",
            f"transformer_blocks.{last}.norm1_context.linear.{{leaf}}",
        ),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
        swap_halves("final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
    ]
    for file, model, parts, norms in (
        ("x_block.attn", "attn", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
        ("x_block.attn2", "attn2", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
        (
            "context_block.attn",
            "attn",
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            ("norm_added_q", "norm_added_k"),
        ),
    ):
        rules += [
            split(f"{block}{file}.qkv.{{leaf}}", *(f"{target}{model}.{part}.{{leaf}}" for part in parts[:3])),
            rename(f"{block}{file}.proj.{{leaf}}", f"{target}{model}.{parts[3]}.{{leaf}}"),
            rename(f"{block}{file}.ln_q.{{leaf}}", f"{target}{model}.{norms[0]}.{{leaf}}"),
            rename(f"{block}{file}.ln_k.{{leaf}}", f"{target}{model}.{norms[1]}.{{leaf}}"),
        ]
    for file, norm, feed_forward in (("x_block", "norm1", "ff"), ("context_block", "norm1_context", "ff_context")):
        rules += [
            rename(f"{block}{file}.adaLN_modulation.1.{{leaf}}", f"{target}{norm}.linear.{{leaf}}"),
            rename(f"{block}{file}.mlp.fc1.{{leaf}}", f"{target}{feed_forward}.net.0.proj.{{leaf}}"),
            rename(f"{block}{file}.mlp.fc2.{{leaf}}", f"{target}{feed_forward}.net.2.{{leaf}}"),
        ]
    return KeyMap(tuple(rules))


def _repository(name: str) -> Repository:
    large, projected = "stabilityai/stable-diffusion-3.5-large", "transformers.CLIPTextModelWithProjection"
    parts = {
        "transformer": Component("diffusers.SD3Transformer2DModel", name),
        "vae": Component("diffusers.AutoencoderKL", large),
        "text_encoder": Component(projected, large, ("clip_l",), ("text_projection.weight",)),
        "text_encoder_2": Component(projected, "stabilityai/stable-diffusion-xl-base-1.0", ("clip_g",)),
        "text_encoder_3": Component("transformers.T5EncoderModel", "google/t5-v1_1-xxl"),
    }
    return Repository("diffusers.StableDiffusion3Pipeline", parts, optional=("text_encoder_3",))


FAMILY = Family(
    "sd3",
    (
        Architecture(
            "transformer",
            "diffusers.SD3Transformer2DModel",
            _transformer,
            _inputs,
            published={
                "stabilityai/stable-diffusion-3-medium-diffusers": _MEDIUM_3,
                "stabilityai/stable-diffusion-3.5-medium": _MEDIUM_3_5,
                "stabilityai/stable-diffusion-3.5-large": _LARGE_3_5,
                "stabilityai/stable-diffusion-3.5-large-turbo": _LARGE_3_5,
            },
            layouts={"original": _original},
            unverified={"sample_size": 128},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            kohya_layout=lambda _: "original",
            latent=LatentNumbers(("batch", "channels", "height", "width"), 16, spatial=8, patch=2),
        ),
    ),
    repositories={
        name: _repository(name)
        for name in (
            "stabilityai/stable-diffusion-3-medium-diffusers",
            "stabilityai/stable-diffusion-3.5-medium",
            "stabilityai/stable-diffusion-3.5-large",
            "stabilityai/stable-diffusion-3.5-large-turbo",
        )
    },
)
