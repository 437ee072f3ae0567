"""Mistral 3 with pictures: the text encoders of FLUX.2 and ERNIE-Image."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes, quotient

_HEAD_DIM, _VISION_HEAD_DIM = 128, 64
"""Of every published model; no norm of the queries tells them."""

_SMALL_TEXT = {
    "model_type": "mistral",
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": _HEAD_DIM,
}
_SMALL = {
    "text_config": _SMALL_TEXT,
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "patch_size": 14,
        "image_size": 1540,
    },
    "spatial_merge_size": 2,
    "multimodal_projector_bias": False,
    "tie_word_embeddings": False,
}
_MINISTRAL_3B = {
    **_SMALL,
    "text_config": {
        **_SMALL_TEXT,
        "model_type": "ministral3",
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
    },
    "tie_word_embeddings": True,
}


def _mistral3(shapes: Shapes) -> dict[str, Any]:
    vision = shapes.under("model.vision_tower.")
    width, channels, patch, _ = vision.shape("patch_conv.weight")
    merged = shapes.size("model.multi_modal_projector.patch_merger.merging_layer.weight", 1)
    tied = not shapes.has("lm_head.weight")
    return {
        # The small models, which share their embeddings with the head, are of the newer type.
        "text_config": {
            "model_type": "ministral3" if tied else "mistral",
            **infer_decoder(shapes.under("model.language_model."), _HEAD_DIM),
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": width,
            "intermediate_size": vision.size("transformer.layers.{n}.feed_forward.gate_proj.weight"),
            "num_hidden_layers": vision.count("transformer.layers"),
            "num_attention_heads": quotient(width, _VISION_HEAD_DIM, "heads"),
            "num_channels": channels,
            "patch_size": patch,
        },
        "spatial_merge_size": round(quotient(merged, width, "patches") ** 0.5),
        "multimodal_projector_bias": shapes.has("model.multi_modal_projector.linear_1.bias"),
        "tie_word_embeddings": tied,
    }


_OLD = KeyMap(
    (
        rename("language_model.model.{rest}", "model.language_model.{rest}"),
        rename("language_model.lm_head.{leaf}", "lm_head.{leaf}"),
        rename("vision_tower.{rest}", "model.vision_tower.{rest}"),
        rename("multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}"),
    )
)

FAMILY = Family(
    "mistral3",
    (
        Architecture(
            "text_encoder",
            "transformers.Mistral3ForConditionalGeneration",
            _mistral3,
            prompt,
            published={"black-forest-labs/FLUX.2-dev": _SMALL, "PaddlePaddle/ERNIE-Image": _MINISTRAL_3B},
            layouts={"hub (before transformers 4.52)": _OLD},
            own_layout="hub",
            unverified={
                "text_config.model_type": "mistral",
                "text_config.head_dim": _HEAD_DIM,
                "text_config.num_attention_heads": None,
                "text_config.num_key_value_heads": None,
                "vision_config.num_attention_heads": 16,
            },
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
    ),
)
