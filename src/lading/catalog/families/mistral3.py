"""Mistral 3 with pictures: the text encoders of FLUX.2 and ERNIE-Image."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt, published_of_a_kind
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
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000000.0, "rope_type": "default"},
    "sliding_window": None,
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
        "hidden_act": "silu",
    },
    "spatial_merge_size": 2,
    "multimodal_projector_bias": False,
    "tie_word_embeddings": False,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_3B_TEXT = {
    **_SMALL_TEXT,
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "max_position_embeddings": 262144,
    "rope_parameters": _YARN,
}
_3B = {**_SMALL, "text_config": _3B_TEXT, "tie_word_embeddings": True}
_PROMPT_ENHANCERS = {"baidu/ERNIE-Image": {**_3B_TEXT, "model_type": "ministral3", "tie_word_embeddings": True}}


def _mistral3(shapes: Shapes) -> dict[str, Any]:
    return {**_mistral3_model(shapes.under("model.")), "tie_word_embeddings": not shapes.has("lm_head.weight")}


def _mistral3_model(shapes: Shapes) -> dict[str, Any]:
    vision = shapes.under("vision_tower.")
    width, channels, patch, _ = vision.shape("patch_conv.weight")
    merged = shapes.size("multi_modal_projector.patch_merger.merging_layer.weight", 1)
    return {
        "text_config": {"model_type": "mistral", **infer_decoder(shapes.under("language_model."), _HEAD_DIM)},
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
        "multimodal_projector_bias": shapes.has("multi_modal_projector.linear_1.bias"),
    }


def _prompt_enhancer(shapes: Shapes) -> dict[str, Any]:
    told = {**infer_decoder(shapes.under("model."), _HEAD_DIM), "tie_word_embeddings": not shapes.has("lm_head.weight")}
    return published_of_a_kind(told, _PROMPT_ENHANCERS)


_OLD = KeyMap(
    (
        rename("language_model.model.{rest}", "model.language_model.{rest}"),
        rename("language_model.lm_head.{leaf}", "lm_head.{leaf}"),
        rename("vision_tower.{rest}", "model.vision_tower.{rest}"),
        rename("multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}"),
    )
)

_UNVERIFIED = {
    "text_config.model_type": "mistral",
    "text_config.head_dim": _HEAD_DIM,
    "text_config.num_attention_heads": None,
    "text_config.num_key_value_heads": None,
    "text_config.rms_norm_eps": 1e-05,
    "text_config.rope_parameters": _SMALL_TEXT["rope_parameters"],
    "text_config.sliding_window": None,
    "vision_config.num_attention_heads": 16,
    "vision_config.hidden_act": "silu",
}

FAMILY = Family(
    "mistral3",
    (
        Architecture(
            "text_encoder",
            "transformers.Mistral3ForConditionalGeneration",
            _mistral3,
            prompt,
            published={"black-forest-labs/FLUX.2-dev": _SMALL, "PaddlePaddle/ERNIE-Image": _3B},
            layouts={"hub (before transformers 4.52)": _OLD},
            own_layout="hub",
            unverified=_UNVERIFIED,
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Mistral3Model",
            _mistral3_model,
            prompt,
            published={"baidu/ERNIE-Image": _3B},
            own_layout="hub",
            unverified=_UNVERIFIED,
            lora_targets=LORA,
        ),
        Architecture(
            "pe",
            "transformers.Ministral3ForCausalLM",
            _prompt_enhancer,
            prompt,
            published=_PROMPT_ENHANCERS,
            own_layout="hub",
            unverified={"rope_parameters": _YARN},
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
    ),
)
