"""CLIP: the text encoders of Stable Diffusion and FLUX.1, in transformers' and OpenCLIP's names, and vision."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, Rule, permute, rename, split
from lading.catalog.shapes import Shapes

_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "hidden_act": "gelu"}
_TEXT_H = {**_TEXT, **_H, "num_hidden_layers": 24}
_TEXT_G = {
    **_TEXT_H,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_VISION = {
    "num_channels": 3,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "quick_gelu",
}
_VISION_H = {
    **_VISION,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
}
_HEAD_DIM = 64
"""Of every published CLIP but the vision side of ViT-H and ViT-bigG, whose is 80 and 104."""


def _text(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes.shape("embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes.size("encoder.layers.{n}.mlp.fc1.weight"),
        "num_hidden_layers": shapes.count("encoder.layers"),
        "num_attention_heads": max(width // _HEAD_DIM, 1),
        "max_position_embeddings": shapes.size("embeddings.position_embedding.weight"),
    }


def _text_with_projection(shapes: Shapes) -> dict[str, Any]:
    text, projection = _text(shapes.under("text_model.")), "text_projection.weight"
    width = shapes.size(projection) if shapes.has(projection) else text["hidden_size"]  # SD3's file leaves it out
    return {**text, "projection_dim": width}


def infer_clip_vision(shapes: Shapes) -> dict[str, Any]:
    """The sizes of the picture side."""
    width, channels, patch, _ = shapes.shape("embeddings.patch_embedding.weight")
    side = round((shapes.size("embeddings.position_embedding.weight") - 1) ** 0.5)
    return {
        "num_channels": channels,
        "hidden_size": width,
        "intermediate_size": shapes.size("encoder.layers.{n}.mlp.fc1.weight"),
        "num_hidden_layers": shapes.count("encoder.layers"),
        "num_attention_heads": {1664: 16, 1280: 16}.get(width, max(width // _HEAD_DIM, 1)),
        "patch_size": patch,
        "image_size": side * patch,
    }


def _vision_with_projection(shapes: Shapes) -> dict[str, Any]:
    return {
        **infer_clip_vision(shapes.under("vision_model.")),
        "projection_dim": shapes.size("visual_projection.weight"),
    }


def _both(shapes: Shapes) -> dict[str, Any]:
    return {
        "text_config": _text(shapes.under("text_model.")),
        "vision_config": infer_clip_vision(shapes.under("vision_model.")),
        "projection_dim": shapes.size("text_projection.weight"),
    }


def _text_inputs(config: Config, extent: Extent) -> Inputs:
    return {"input_ids": InputSpec((extent.batch, config["max_position_embeddings"]), "int64")}


def _vision_inputs(config: Config, extent: Extent) -> Inputs:
    side = config["image_size"]
    return {"pixel_values": InputSpec((extent.batch, config["num_channels"], side, side))}


def _both_inputs(config: Config, extent: Extent) -> Inputs:
    return {**_text_inputs(config["text_config"], extent), **_vision_inputs(config["vision_config"], extent)}


def _open_clip(model: str) -> list[Rule]:
    """OpenCLIP's text tower; queries, keys and values are one tensor there."""
    block, layer = "transformer.resblocks.{n}.", f"{model}encoder.layers.{{n}}."
    return [
        rename("token_embedding.weight", f"{model}embeddings.token_embedding.weight"),
        rename("positional_embedding", f"{model}embeddings.position_embedding.weight"),
        split(
            f"{block}attn.in_proj_{{leaf}}",
            *(f"{layer}self_attn.{name}_proj.{{leaf}}" for name in "qkv"),
        ),
        rename(f"{block}attn.out_proj.{{leaf}}", f"{layer}self_attn.out_proj.{{leaf}}"),
        rename(f"{block}ln_{{i}}.{{leaf}}", f"{layer}layer_norm{{i}}.{{leaf}}"),
        rename(f"{block}mlp.c_fc.{{leaf}}", f"{layer}mlp.fc1.{{leaf}}"),
        rename(f"{block}mlp.c_proj.{{leaf}}", f"{layer}mlp.fc2.{{leaf}}"),
        rename("ln_final.{leaf}", f"{model}final_layer_norm.{{leaf}}"),
    ]


_OPEN_CLIP = KeyMap((*_open_clip("text_model."), permute("text_projection", "text_projection.weight", 1, 0)))
_PREFIX = "hub (text_model. prefix)"
_HEADS = {"num_attention_heads": None, "hidden_act": "quick_gelu"}

FAMILY = Family(
    "clip",
    (
        Architecture(
            "text_encoder",
            "transformers.CLIPTextModel",
            _text,
            _text_inputs,
            published={
                "openai/clip-vit-large-patch14": _TEXT,
                "stabilityai/stable-diffusion-2-1": {**_TEXT_H, "num_hidden_layers": 23},
            },
            layouts={
                _PREFIX: KeyMap((rename("text_model.{rest}", "{rest}"),)),
                "original": KeyMap(tuple(_open_clip(""))),
            },
            own_layout="hub",
            unverified=_HEADS,
            beside=("{rest}position_ids", "text_projection", "text_projection.weight", "logit_scale"),
            lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        ),
        Architecture(
            "text_encoder_2",
            "transformers.CLIPTextModelWithProjection",
            _text_with_projection,
            _text_inputs,
            published={
                "stabilityai/stable-diffusion-xl-base-1.0": _TEXT_G,
                "stabilityai/stable-diffusion-3.5-large": {**_TEXT, "projection_dim": 768},
            },
            layouts={"original": _OPEN_CLIP},
            own_layout="hub",
            unverified=_HEADS,
            beside=("{rest}position_ids", "logit_scale"),
            lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        ),
        Architecture(
            "image_encoder",
            "transformers.CLIPVisionModel",
            infer_clip_vision,
            _vision_inputs,
            published={
                "openai/clip-vit-large-patch14": _VISION,
                "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _VISION_H,
            },
            layouts={"hub (vision_model. prefix)": KeyMap((rename("vision_model.{rest}", "{rest}"),))},
            own_layout="hub",
            unverified=_HEADS,
            beside=("{rest}position_ids",),
        ),
        Architecture(
            "image_encoder",
            "transformers.CLIPVisionModelWithProjection",
            _vision_with_projection,
            _vision_inputs,
            published={"laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {**_VISION_H, "projection_dim": 1024}},
            own_layout="hub",
            unverified=_HEADS,
            beside=("{rest}position_ids",),
        ),
        Architecture(
            "clip",
            "transformers.CLIPModel",
            _both,
            _both_inputs,
            published={
                "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {
                    "text_config": _TEXT_H,
                    "vision_config": _VISION_H,
                    "projection_dim": 1024,
                },
                "openai/clip-vit-large-patch14": {
                    "text_config": _TEXT,
                    "vision_config": _VISION,
                    "projection_dim": 768,
                },
            },
            own_layout="hub",
            unverified={"text_config.hidden_act": "quick_gelu", "vision_config.hidden_act": "quick_gelu"},
            beside=("{rest}position_ids",),
        ),
    ),
)
