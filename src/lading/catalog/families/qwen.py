"""Qwen language and vision-language models that encode prompts: Qwen2.5-VL, Qwen3, Qwen3-VL, Qwen3.5."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Family
from lading.catalog.families._decoder import LORA, infer_decoder, prompt
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes, quotient


def _rotary(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default", **more}


_QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_parameters": _rotary(1000000.0),
}
_QWEN3_0_6B = {
    **_QWEN3_4B,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
_QWEN3_8B = {**_QWEN3_4B, "hidden_size": 4096, "intermediate_size": 12288}
_VISION_2_5 = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "tokens_per_second": 2,
}
_QWEN2_5_VL_7B: Config = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_parameters": _rotary(1000000.0, mrope_section=[16, 24, 24]),
    },
    "vision_config": _VISION_2_5,
    "tie_word_embeddings": False,
}
_VISION_3 = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 5120,
    "num_position_embeddings": 2304,
}
_QWEN3_VL_TEXT = {
    **_QWEN3_4B,
    "rope_parameters": _rotary(5000000.0, mrope_section=[24, 20, 20], mrope_interleaved=True),
}
_QWEN3_VL_4B = {
    "text_config": _QWEN3_VL_TEXT,
    "vision_config": {
        **_VISION_3,
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": (5, 11, 17),
    },
    "tie_word_embeddings": True,
}
_QWEN3_VL_8B = {
    "text_config": {**_QWEN3_VL_TEXT, "hidden_size": 4096, "intermediate_size": 12288},
    "vision_config": {**_VISION_3, "out_hidden_size": 4096, "deepstack_visual_indexes": (8, 16, 24)},
    "tie_word_embeddings": False,
}
_QWEN3_VL_32B = {
    "text_config": {
        **_QWEN3_VL_TEXT,
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
    },
    "vision_config": {**_VISION_3, "deepstack_visual_indexes": (8, 16, 24)},
    "tie_word_embeddings": False,
}
_LINEAR, _FULL = "linear_attention", "full_attention"
_QWEN3_5_27B: Config = {
    "text_config": {
        "vocab_size": 248320,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 64,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "layer_types": [_LINEAR, _LINEAR, _LINEAR, _FULL] * 16,
        "rope_parameters": _rotary(
            10000000.0, partial_rotary_factor=0.25, mrope_section=[11, 11, 10], mrope_interleaved=True
        ),
    },
    "vision_config": _VISION_3,
    "tie_word_embeddings": False,
}
_HEAD_DIM = 128
"""Of Qwen2.5, whose queries have no norm that would tell it."""


def _tied(shapes: Shapes) -> bool:
    return not shapes.has("lm_head.weight")


def _vision(shapes: Shapes, merged: str, out: str, inner: str) -> dict[str, Any]:
    """The picture side: `merged`, `out` and `inner` name the tensors that tell how patches merge and how wide it is."""
    width, channels, frames, patch, _ = shapes.shape("patch_embed.proj.weight")
    return {
        "depth": shapes.count("blocks"),
        "hidden_size": width,
        "intermediate_size": shapes.size(inner),
        "num_heads": 16,
        "in_channels": channels,
        "patch_size": patch,
        "temporal_patch_size": frames,
        "spatial_merge_size": round(quotient(shapes.size(merged, 1), width, "patches") ** 0.5),
        "out_hidden_size": shapes.size(out),
    }


def _qwen3(shapes: Shapes) -> dict[str, Any]:
    return infer_decoder(shapes)


def _qwen3_causal(shapes: Shapes) -> dict[str, Any]:
    return {**infer_decoder(shapes.under("model.")), "tie_word_embeddings": _tied(shapes)}


def _qwen2_5_vl(shapes: Shapes) -> dict[str, Any]:
    text = infer_decoder(shapes.under("model.language_model."), _HEAD_DIM)
    text.pop("head_dim")
    visual = shapes.under("model.visual.")
    vision = _vision(visual, "merger.mlp.0.weight", "merger.mlp.2.weight", "blocks.{n}.mlp.gate_proj.weight")
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": _tied(shapes)}


def _vision_3(shapes: Shapes) -> dict[str, Any]:
    visual = shapes.under("visual.")
    inner = "blocks.{n}.mlp.linear_fc1.weight"
    vision = _vision(visual, "merger.linear_fc1.weight", "merger.linear_fc2.weight", inner)
    return {**vision, "num_position_embeddings": visual.size("pos_embed.weight")}


def _qwen3_vl(shapes: Shapes) -> dict[str, Any]:
    return {**_qwen3_vl_model(shapes.under("model.")), "tie_word_embeddings": _tied(shapes)}


def _qwen3_vl_model(shapes: Shapes) -> dict[str, Any]:
    vision = _vision_3(shapes)
    mergers = shapes.count("visual.deepstack_merger_list")
    step = 8 if vision["depth"] == 27 else max(vision["depth"] // (mergers + 1), 1)
    first = step if vision["depth"] == 27 else step - 1
    return {
        "text_config": infer_decoder(shapes.under("language_model.")),
        "vision_config": {
            **vision,
            "deepstack_visual_indexes": tuple(first + step * number for number in range(mergers)),
        },
    }


def _qwen3_5(shapes: Shapes) -> dict[str, Any]:
    text = shapes.under("model.language_model.")
    linear, depth = "layers.{n}.linear_attn", text.count("layers")
    values = text.size(f"{linear}.in_proj_z.weight")
    keys = quotient(text.size(f"{linear}.in_proj_qkv.weight") - values, 2, "queries and keys")
    return {
        "text_config": {
            **infer_decoder(text),
            "linear_conv_kernel_dim": text.size(f"{linear}.conv1d.weight", 2),
            "linear_key_head_dim": 128,
            "linear_value_head_dim": text.size(f"{linear}.norm.weight"),
            "linear_num_key_heads": quotient(keys, 128, "heads of keys"),
            "linear_num_value_heads": text.size(f"{linear}.A_log"),
            "layer_types": [_LINEAR if text.has(f"layers.{n}.linear_attn.A_log") else _FULL for n in range(depth)],
        },
        "vision_config": _vision_3(shapes.under("model.")),
        "tie_word_embeddings": _tied(shapes),
    }


_OLD_VL = KeyMap(
    (
        rename("visual.{rest}", "model.visual.{rest}"),
        rename("model.{rest}", "model.language_model.{rest}"),
        rename("lm_head.weight", "lm_head.weight"),
    )
)
_VISION_HEADS, _TEXT_ROPE = "vision_config.num_heads", "text_config.rope_parameters"
_UNVERIFIED_VL = {
    _VISION_HEADS: 16,
    "vision_config.deepstack_visual_indexes": (8, 16, 24),
    _TEXT_ROPE: _QWEN3_VL_TEXT["rope_parameters"],
}

FAMILY = Family(
    "qwen",
    (
        Architecture(
            "text_encoder",
            "transformers.Qwen2_5_VLForConditionalGeneration",
            _qwen2_5_vl,
            prompt,
            published={"Qwen/Qwen2.5-VL-7B-Instruct": _QWEN2_5_VL_7B},
            layouts={"hub (before transformers 4.52)": _OLD_VL},
            own_layout="hub",
            examples=({**_QWEN2_5_VL_7B, "tie_word_embeddings": True},),
            unverified={
                _VISION_HEADS: 16,
                "vision_config.tokens_per_second": 2,
                "text_config.num_attention_heads": None,
                "text_config.rms_norm_eps": 1e-06,
                _TEXT_ROPE: _QWEN2_5_VL_7B["text_config"]["rope_parameters"],
            },
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Qwen3Model",
            _qwen3,
            prompt,
            published={"Qwen/Qwen3-4B": _QWEN3_4B, "Qwen/Qwen3-0.6B": _QWEN3_0_6B, "Qwen/Qwen3-8B": _QWEN3_8B},
            layouts={"hub (model. prefix)": KeyMap((rename("model.{rest}", "{rest}"),))},
            own_layout="hub",
            unverified={"rope_parameters": _QWEN3_4B["rope_parameters"]},
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Qwen3ForCausalLM",
            _qwen3_causal,
            prompt,
            published={
                "Qwen/Qwen3-8B": {**_QWEN3_8B, "tie_word_embeddings": False},
                "MiniMax/MiniMax-Music3": {**_QWEN3_8B, "vocab_size": 200000, "tie_word_embeddings": False},
            },
            own_layout="hub",
            unverified={"rope_parameters": _QWEN3_4B["rope_parameters"]},
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Qwen3VLForConditionalGeneration",
            _qwen3_vl,
            prompt,
            published={"Qwen/Qwen3-VL-4B-Instruct": _QWEN3_VL_4B, "MiniMax/MiniMax-H3-FL2VA": _QWEN3_VL_32B},
            own_layout="hub",
            unverified=_UNVERIFIED_VL,
            tied=("lm_head.weight",),
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Qwen3VLModel",
            _qwen3_vl_model,
            prompt,
            published={"Qwen/Qwen3-VL-4B-Instruct": _QWEN3_VL_4B, "Qwen/Qwen3-VL-8B-Instruct": _QWEN3_VL_8B},
            own_layout="hub",
            unverified=_UNVERIFIED_VL,
            lora_targets=LORA,
        ),
        Architecture(
            "text_encoder",
            "transformers.Qwen3_5ForConditionalGeneration",
            _qwen3_5,
            prompt,
            published={"Qwen/Qwen3.5-27B": _QWEN3_5_27B},
            own_layout="hub",
            unverified={
                _VISION_HEADS: 16,
                "text_config.linear_key_head_dim": 128,
                _TEXT_ROPE: _QWEN3_5_27B["text_config"]["rope_parameters"],
            },
            tied=("lm_head.weight",),
            beside=("mtp.{rest}",),
            lora_targets=LORA,
        ),
    ),
)
