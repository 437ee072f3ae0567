"""Ideogram 4: pictures from prompts. https://huggingface.co/ideogram-ai"""

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
from lading.catalog.keymap import KeyMap, rename, split
from lading.catalog.shapes import Shapes, quotient

_BASE = {
    "in_channels": 128,
    "num_layers": 34,
    "attention_head_dim": 256,
    "num_attention_heads": 18,
    "intermediate_size": 12288,
    "adaln_dim": 512,
    "llm_features_dim": 53248,
    "mrope_section": (24, 20, 20),
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels = shapes.shape("input_proj.weight")
    head = shapes.size("layers.{n}.attention.norm_q.weight")
    return {
        "in_channels": in_channels,
        "num_layers": shapes.count("layers"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(width, head, "heads"),
        "intermediate_size": shapes.size("layers.{n}.feed_forward.w1.weight"),
        "adaln_dim": shapes.size("adaln_proj.weight"),
        "llm_features_dim": shapes.size("llm_cond_norm.weight"),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    length = extent.tokens + extent.height // 16 * (extent.width // 16)
    return {
        "hidden_states": InputSpec((extent.batch, length, config["in_channels"])),
        "timestep": InputSpec((extent.batch,)),
        "encoder_hidden_states": InputSpec((extent.batch, length, config["llm_features_dim"])),
        "position_ids": InputSpec((extent.batch, length, 3), "int64"),
        "segment_ids": InputSpec((extent.batch, length), "int64"),
        "indicator": InputSpec((extent.batch, length), "int64"),
    }


_ORIGINAL = KeyMap(
    (
        split("layers.{n}.attention.qkv.{leaf}", *(f"layers.{{n}}.attention.to_{name}.{{leaf}}" for name in "qkv")),
        rename("layers.{n}.attention.o.{leaf}", "layers.{n}.attention.to_out.0.{leaf}"),
        rename("{rest}", "{rest}"),
    )
)

FAMILY = Family(
    "ideogram4",
    (
        Architecture(
            "transformer",
            "diffusers.Ideogram4Transformer2DModel",
            _transformer,
            _inputs,
            published={"ideogram-ai/ideogram-4": _BASE},
            layouts={"original": _ORIGINAL},
            unverified={"mrope_section": (24, 20, 20)},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                32,
                spatial=8,
                patch=2,
                patch_entry=None,
                packed=True,
                channels_last=True,
                guidance="passes",
            ),
        ),
    ),
    repositories={
        "ideogram-ai/ideogram-4": Repository(
            "diffusers.Ideogram4Pipeline",
            {
                "transformer": Component("diffusers.Ideogram4Transformer2DModel", "ideogram-ai/ideogram-4"),
                "unconditional_transformer": Component(
                    "diffusers.Ideogram4Transformer2DModel", "ideogram-ai/ideogram-4"
                ),
                "vae": Component("diffusers.AutoencoderKLFlux2", "black-forest-labs/FLUX.2-dev"),
                "text_encoder": Component("transformers.Qwen3VLModel", "Qwen/Qwen3-VL-8B-Instruct"),
            },
        ),
    },
)
