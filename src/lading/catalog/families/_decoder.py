"""Decoder-only language models, alone or inside of vision-language models: sizes that the encoders here share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lading.catalog.architecture import Config, Extent, Inputs, InputSpec
from lading.catalog.families._arrangement import published_arrangement
from lading.catalog.shapes import Shapes, quotient


def infer_decoder(shapes: Shapes, head_dim: int | None = None) -> dict[str, Any]:
    """The sizes of a decoder, whose names begin with `layers`, `embed_tokens`, `norm`.

    Args:
        head_dim: where no norm of the queries tells it.
    """
    attention = "layers.{n}.self_attn"
    vocabulary, width = shapes.shape("embed_tokens.weight")
    head = head_dim or shapes.size(f"{attention}.q_norm.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes.size("layers.{n}.mlp.gate_proj.weight"),
        "num_hidden_layers": shapes.count("layers"),
        "num_attention_heads": quotient(shapes.size(f"{attention}.o_proj.weight", 1), head, "heads"),
        "num_key_value_heads": quotient(shapes.size(f"{attention}.k_proj.weight"), head, "heads of keys"),
        "head_dim": head,
    }


def published_of_a_kind(told: dict[str, Any], published: Mapping[str, Config]) -> dict[str, Any]:
    """Return the published config of this width and vocabulary, at this depth.

    Many language models have the same names: only one of a known size is called by the name of its family.

    Raises:
        UnknownSizeError: none is published.
    """
    sizes = {key: value for key, value in told.items() if key != "num_hidden_layers"}
    return {**published_arrangement(sizes, published, "a language model of a known size"), **told}


def prompt(_config: Config, extent: Extent) -> Inputs:
    """The tokens of a prompt."""
    return {"input_ids": InputSpec((extent.batch, extent.tokens), "int64")}


LORA = ("q_proj", "k_proj", "v_proj", "o_proj")
