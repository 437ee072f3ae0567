"""T5 and UMT5 encoders: the long prompts of SD3, FLUX.1, the LTX and CogVideoX films (T5), and of Wan (UMT5)."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes, UnknownSizeError, quotient

_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "d_ff": 10240,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
_ATTENTION = "encoder.block.{n}.layer.0.SelfAttention"
_BIAS = f"{_ATTENTION}.relative_attention_bias.weight"
_DENSE = "encoder.block.{n}.layer.1.DenseReluDense"


def _encoder(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes.shape("shared.weight")
    buckets, heads = shapes.shape(_BIAS)
    gated = shapes.has(f"{_DENSE}.wi_0.weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": quotient(shapes.size(f"{_ATTENTION}.q.weight"), heads, "heads"),
        "num_heads": heads,
        "num_layers": shapes.count("encoder.block"),
        "d_ff": shapes.size(f"{_DENSE}.wo.weight", 1),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def _t5(shapes: Shapes) -> dict[str, Any]:
    if len(shapes.find(_BIAS)) > 1:
        raise UnknownSizeError("one position bias for all blocks: each block has its own, as in UMT5")
    return _encoder(shapes)


def _umt5(shapes: Shapes) -> dict[str, Any]:
    if len(shapes.find(_BIAS)) == 1 < len(shapes.find(f"{_ATTENTION}.q.weight")):
        raise UnknownSizeError("a position bias in every block: only one block has it, as in T5")
    return _encoder(shapes)


def _inputs(_config: Config, extent: Extent) -> Inputs:
    return {"input_ids": InputSpec((extent.batch, extent.tokens), "int64")}


_WAN = KeyMap(
    (
        rename("token_embedding.weight", "shared.weight"),
        *(rename(f"blocks.{{n}}.attn.{name}.weight", f"{_ATTENTION}.{name}.weight") for name in "qkvo"),
        rename("blocks.{n}.pos_embedding.embedding.weight", _BIAS),
        rename("blocks.{n}.norm1.weight", "encoder.block.{n}.layer.0.layer_norm.weight"),
        rename("blocks.{n}.norm2.weight", "encoder.block.{n}.layer.1.layer_norm.weight"),
        rename("blocks.{n}.ffn.gate.0.weight", f"{_DENSE}.wi_0.weight"),
        rename("blocks.{n}.ffn.fc1.weight", f"{_DENSE}.wi_1.weight"),
        rename("blocks.{n}.ffn.fc2.weight", f"{_DENSE}.wo.weight"),
        rename("norm.weight", "encoder.final_layer_norm.weight"),
    )
)
"""The names in Wan's own `models_t5_umt5-xxl-enc-bf16.pth`."""


def _llama_cpp(shapes: Shapes) -> KeyMap:
    """The names in GGUF files, which llama.cpp gives; a layer without a gate has one matrix less."""
    gated = any(shapes.has(f"{name}.weight") for name in ("enc.blk.{n}.ffn_gate", f"{_DENSE}.wi_0"))
    inner = {"ffn_gate": "wi_0", "ffn_up": "wi_1"} if gated else {"ffn_up": "wi"}
    return KeyMap(
        (
            rename("token_embd.weight", "shared.weight"),
            *(rename(f"enc.blk.{{n}}.attn_{name}.weight", f"{_ATTENTION}.{name}.weight") for name in "qkvo"),
            rename("enc.blk.{n}.attn_rel_b.weight", _BIAS),
            rename("enc.blk.{n}.attn_norm.weight", "encoder.block.{n}.layer.0.layer_norm.weight"),
            rename("enc.blk.{n}.ffn_norm.weight", "encoder.block.{n}.layer.1.layer_norm.weight"),
            *(rename(f"enc.blk.{{n}}.{name}.weight", f"{_DENSE}.{own}.weight") for name, own in inner.items()),
            rename("enc.blk.{n}.ffn_down.weight", f"{_DENSE}.wo.weight"),
            rename("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
        )
    )


FAMILY = Family(
    "t5",
    (
        Architecture(
            "text_encoder",
            "transformers.T5EncoderModel",
            _t5,
            _inputs,
            published={"google/t5-v1_1-xxl": _XXL},
            layouts={"llama.cpp": _llama_cpp},
            own_layout="hub",
            examples=(
                {**_XXL, "num_layers": 2, "d_model": 512, "d_ff": 2048, "num_heads": 8, "feed_forward_proj": "relu"},
            ),
            tied=("encoder.embed_tokens.weight",),
            lora_targets=("q", "k", "v", "o"),
        ),
        Architecture(
            "text_encoder",
            "transformers.UMT5EncoderModel",
            _umt5,
            _inputs,
            published={"google/umt5-xxl": {**_XXL, "vocab_size": 256384}},
            layouts={"original": _WAN, "llama.cpp": _llama_cpp},
            own_layout="hub",
            tied=("encoder.embed_tokens.weight",),
            lora_targets=("q", "k", "v", "o"),
        ),
    ),
)
