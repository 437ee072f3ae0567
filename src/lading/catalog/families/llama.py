"""Llama 3, alone and with pictures as LLaVA: the text encoders of HunyuanVideo."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt, published_of_a_kind
from lading.catalog.families.clip import infer_clip_vision
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes

_HEAD_DIM = 128
_8B = {
    "model_type": "llama",
    "vocab_size": 128320,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
}
_ALONE = {"hunyuanvideo-community/HunyuanVideo": _8B}
_LLAVA = {
    "text_config": _8B,
    "vision_config": {
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 336,
        "projection_dim": 768,
    },
    "image_token_index": 128257,
    "tie_word_embeddings": False,
}


def _text(shapes: Shapes) -> dict[str, Any]:
    sizes = infer_decoder(shapes, _HEAD_DIM)
    sizes.pop("head_dim")
    return sizes


def _llama(shapes: Shapes) -> dict[str, Any]:
    return published_of_a_kind(_text(shapes), _ALONE)


def _llava(shapes: Shapes) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **_text(shapes.under("model.language_model."))},
        "vision_config": {
            "model_type": "clip_vision_model",
            **infer_clip_vision(shapes.under("model.vision_tower.")),
        },
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
    "llama",
    (
        Architecture(
            "text_encoder",
            "transformers.LlamaModel",
            _llama,
            prompt,
            published=_ALONE,
            own_layout="hub",
            unverified={"rope_parameters": _8B["rope_parameters"], "rms_norm_eps": 1e-05},
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.LlavaForConditionalGeneration",
            _llava,
            prompt,
            published={"hunyuanvideo-community/HunyuanVideo-I2V": _LLAVA},
            layouts={"hub (before transformers 4.52)": _OLD},
            own_layout="hub",
            unverified={
                "text_config.rope_parameters": _8B["rope_parameters"],
                "text_config.rms_norm_eps": 1e-05,
                "vision_config.num_attention_heads": 16,
            },
            tied=("lm_head.weight",),
            beside=("{rest}position_ids",),
            lora_targets=LORA,
        ),
    ),
)
