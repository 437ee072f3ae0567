"""Gemma 2: the text encoder of Sana."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes

_HEAD_DIM = 256
_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": _HEAD_DIM,
}


def _gemma2(shapes: Shapes) -> dict[str, Any]:
    return infer_decoder(shapes, _HEAD_DIM)


FAMILY = Family(
    "gemma2",
    (
        Architecture(
            "text_encoder",
            "transformers.Gemma2Model",
            _gemma2,
            prompt,
            published={"google/gemma-2-2b-it": _2B},
            layouts={"hub (model. prefix)": KeyMap((rename("model.{rest}", "{rest}"),))},
            own_layout="hub",
            unverified={"head_dim": _HEAD_DIM, "num_attention_heads": None, "num_key_value_heads": None},
            lora_targets=LORA,
        ),
    ),
)
