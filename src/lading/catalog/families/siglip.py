"""SigLIP and SigLIP 2: pictures for FLUX.1 Redux, Qwen-Image's and Z-Image's editors, and other models."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes

_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 384,
    "vision_use_head": True,
}
_SO400M_TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "max_position_embeddings": 64,
    "projection_size": 1152,
}
_GIANT = {
    **_SO400M,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 40,
    "patch_size": 16,
}
_NAFLEX = {key: value for key, value in _SO400M.items() if key != "image_size"} | {"patch_size": 16, "num_patches": 256}


def _heads(width: int) -> int:
    """Heads are 64 wide up to the large models, then there are sixteen; shapes do not tell."""
    return max(width // 64, 1) if width <= 1024 else 16


def infer_vision(shapes: Shapes) -> dict[str, Any]:
    """The sizes of the picture side, whose patches are a convolution; a rest of the picture below a patch is lost."""
    width, channels, patch, _ = shapes.shape("embeddings.patch_embedding.weight")
    side = round(shapes.size("embeddings.position_embedding.weight") ** 0.5)
    return {**_layers(shapes, width), "num_channels": channels, "patch_size": patch, "image_size": side * patch}


def _layers(shapes: Shapes, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": shapes.size("encoder.layers.{n}.mlp.fc1.weight"),
        "num_hidden_layers": shapes.count("encoder.layers"),
        "num_attention_heads": _heads(width),
        "vision_use_head": shapes.has("head.probe"),
    }


def _both(shapes: Shapes) -> dict[str, Any]:
    text = shapes.under("text_model.")
    vocabulary, width = text.shape("embeddings.token_embedding.weight")
    layers = _layers(text, width)
    layers.pop("vision_use_head")
    return {
        "text_config": {
            **layers,
            "vocab_size": vocabulary,
            "max_position_embeddings": text.size("embeddings.position_embedding.weight"),
            "projection_size": text.size("head.weight"),
        },
        "vision_config": infer_vision(shapes.under("vision_model.")),
    }


def _naflex(shapes: Shapes) -> dict[str, Any]:
    width, pixels = shapes.shape("embeddings.patch_embedding.weight")
    return {
        **_layers(shapes, width),
        "num_channels": 3,
        "patch_size": round((pixels / 3) ** 0.5),
        "num_patches": shapes.size("embeddings.position_embedding.weight"),
    }


def _vision_inputs(config: Config, extent: Extent) -> Inputs:
    side = config["image_size"]
    return {"pixel_values": InputSpec((extent.batch, config["num_channels"], side, side))}


def _both_inputs(config: Config, extent: Extent) -> Inputs:
    tokens = config["text_config"]["max_position_embeddings"]
    text = InputSpec((extent.batch, tokens), "int64")
    return {**_vision_inputs(config["vision_config"], extent), "input_ids": text}


def _naflex_inputs(config: Config, extent: Extent) -> Inputs:
    patches = config["num_patches"]
    side = round(patches**0.5)
    return {
        "pixel_values": InputSpec((extent.batch, patches, config["num_channels"] * config["patch_size"] ** 2)),
        "pixel_attention_mask": InputSpec((extent.batch, patches), "int64"),
        "spatial_shapes": InputSpec((extent.batch, 2), "int64", ((side, side),) * extent.batch),
    }


_PREFIX = {"hub (vision_model. prefix)": KeyMap((rename("vision_model.{rest}", "{rest}"),))}

FAMILY = Family(
    "siglip",
    (
        Architecture(
            "image_encoder",
            "transformers.SiglipVisionModel",
            infer_vision,
            _vision_inputs,
            published={
                "google/siglip-so400m-patch14-384": _SO400M,
                "DiffSynth-Studio/General-Image-Encoders": _GIANT,
            },
            layouts=_PREFIX,
            own_layout="hub",
            examples=({**_SO400M, "vision_use_head": False},),
            unverified={"num_attention_heads": None, "image_size": None},
        ),
        Architecture(
            "image_encoder",
            "transformers.SiglipModel",
            _both,
            _both_inputs,
            published={"google/siglip-so400m-patch14-384": {"text_config": _SO400M_TEXT, "vision_config": _SO400M}},
            own_layout="hub",
            unverified={
                "text_config.num_attention_heads": None,
                "vision_config.num_attention_heads": None,
                "vision_config.image_size": None,
            },
        ),
        Architecture(
            "image_encoder",
            "transformers.Siglip2VisionModel",
            _naflex,
            _naflex_inputs,
            published={"Tongyi-MAI/Z-Image-Omni-Base": _NAFLEX},
            layouts=_PREFIX,
            own_layout="hub",
            unverified={"num_attention_heads": None, "num_channels": 3},
        ),
    ),
)
