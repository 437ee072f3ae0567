"""Gemma 3 with pictures: the text encoder of LTX-2."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt
from lading.catalog.families.siglip import infer_vision
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes

_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}
_12B = {
    "text_config": {
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 1024,
        "rope_parameters": _ROPE,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_channels": 3,
        "patch_size": 14,
        "image_size": 896,
        "vision_use_head": False,
    },
    "tie_word_embeddings": True,
}


def _gemma3(shapes: Shapes) -> dict[str, Any]:
    return {
        "text_config": infer_decoder(shapes.under("model.language_model.")),
        "vision_config": infer_vision(shapes.under("model.vision_tower.")),
        "tie_word_embeddings": not shapes.has("lm_head.weight"),
    }


_OLD = KeyMap(
    (
        rename("language_model.model.{rest}", "model.language_model.{rest}"),
        rename("language_model.lm_head.{leaf}", "lm_head.{leaf}"),
        rename("vision_tower.vision_model.{rest}", "model.vision_tower.{rest}"),
        rename("multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}"),
    )
)

FAMILY = Family(
    "gemma3",
    (
        Architecture(
            "text_encoder",
            "transformers.Gemma3ForConditionalGeneration",
            _gemma3,
            prompt,
            published={"google/gemma-3-12b-it-qat-q4_0-unquantized": _12B},
            layouts={"hub (before transformers 4.52)": _OLD},
            own_layout="hub",
            unverified={
                "text_config.sliding_window": 1024,
                "text_config.rope_parameters": _ROPE,
                "vision_config.num_attention_heads": 16,
            },
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
    ),
)
