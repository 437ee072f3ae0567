"""Krea 2: pictures from prompts. https://huggingface.co/krea"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import (
    Architecture,
    Component,
    Config,
    Extent,
    Family,
    Inputs,
    InputSpec,
    LatentNumbers,
    Repository,
)
from lading.catalog.keymap import KeyMap, Rule, fold, rename
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, entry, halvings

_RAW = {
    "in_channels": 64,
    "num_layers": 28,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "num_key_value_heads": 12,
    "intermediate_size": 16384,
    "timestep_embed_dim": 256,
    "text_hidden_dim": 2560,
    "num_text_layers": 12,
    "text_num_attention_heads": 20,
    "text_num_key_value_heads": 20,
    "text_intermediate_size": 6912,
    "num_layerwise_text_blocks": 2,
    "num_refiner_text_blocks": 2,
    "axes_dims_rope": (32, 48, 48),
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    block, text = "transformer_blocks.{n}.attn", "text_fusion.{}_blocks"
    head = shapes.size(f"{block}.norm_q.weight")
    layerwise, refiner = shapes.count(text.format("layerwise")), shapes.count(text.format("refiner"))
    fusion = f"{text.format('layerwise' if layerwise else 'refiner')}.{{n}}"
    text_head = shapes.size(f"{fusion}.attn.norm_q.weight")
    axis = head // 16 * 6  # 32, 48, 48 of 128
    return {
        "in_channels": shapes.size("img_in.weight", 1),
        "num_layers": shapes.count("transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(shapes.size(f"{block}.to_q.weight"), head, "heads"),
        "num_key_value_heads": quotient(shapes.size(f"{block}.to_k.weight"), head, "heads of keys"),
        "intermediate_size": shapes.size("transformer_blocks.{n}.ff.gate.weight"),
        "timestep_embed_dim": shapes.size("time_embed.linear_1.weight", 1),
        "text_hidden_dim": shapes.size("txt_in.norm.weight"),
        "num_text_layers": shapes.size("text_fusion.projector.weight", 1),
        "text_num_attention_heads": quotient(shapes.size(f"{fusion}.attn.to_q.weight"), text_head, "heads"),
        "text_num_key_value_heads": quotient(shapes.size(f"{fusion}.attn.to_k.weight"), text_head, "heads of keys"),
        "text_intermediate_size": shapes.size(f"{fusion}.ff.gate.weight"),
        "num_layerwise_text_blocks": layerwise,
        "num_refiner_text_blocks": refiner,
        "axes_dims_rope": (head - 2 * axis, axis, axis),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    tokens = extent.height // 16 * (extent.width // 16)
    text = (extent.batch, extent.tokens, config["num_text_layers"], config["text_hidden_dim"])
    return {
        "hidden_states": InputSpec((extent.batch, tokens, config["in_channels"])),
        "encoder_hidden_states": InputSpec(text),
        "timestep": InputSpec((extent.batch,)),
        "position_ids": InputSpec((extent.tokens + tokens, 3)),
    }


def _block(file: str, model: str) -> list[Rule]:
    attention = (("wq", "to_q"), ("wk", "to_k"), ("wv", "to_v"), ("wo", "to_out.0"), ("gate", "to_gate"))
    return [
        *(rename(f"{file}.attn.{old}.{{leaf}}", f"{model}.attn.{new}.{{leaf}}") for old, new in attention),
        rename(f"{file}.attn.qknorm.qnorm.scale", f"{model}.attn.norm_q.weight"),
        rename(f"{file}.attn.qknorm.knorm.scale", f"{model}.attn.norm_k.weight"),
        rename(f"{file}.prenorm.scale", f"{model}.norm1.weight"),
        rename(f"{file}.postnorm.scale", f"{model}.norm2.weight"),
        rename(f"{file}.mlp.{{rest}}", f"{model}.ff.{{rest}}"),
    ]


_ORIGINAL = KeyMap(
    (
        rename("first.{leaf}", "img_in.{leaf}"),
        rename("tmlp.0.{leaf}", "time_embed.linear_1.{leaf}"),
        rename("tmlp.2.{leaf}", "time_embed.linear_2.{leaf}"),
        rename("tproj.1.{leaf}", "time_mod_proj.{leaf}"),
        rename("txtmlp.0.scale", "txt_in.norm.weight"),
        rename("txtmlp.1.{leaf}", "txt_in.linear_1.{leaf}"),
        rename("txtmlp.3.{leaf}", "txt_in.linear_2.{leaf}"),
        *_block("txtfusion.layerwise_blocks.{n}", "text_fusion.layerwise_blocks.{n}"),
        *_block("txtfusion.refiner_blocks.{n}", "text_fusion.refiner_blocks.{n}"),
        rename("txtfusion.projector.{leaf}", "text_fusion.projector.{leaf}"),
        *_block("blocks.{n}", "transformer_blocks.{n}"),
        fold("blocks.{n}.mod.lin", "transformer_blocks.{n}.scale_shift_table", 6),
        rename("last.linear.{leaf}", "final_layer.linear.{leaf}"),
        rename("last.norm.scale", "final_layer.norm.weight"),
        rename("last.modulation.lin", "final_layer.scale_shift_table"),
    )
)


def _not_in_the_class(shapes: Shapes) -> dict[str, str]:
    """A branch of the last layer that raw.safetensors has; its own code does not run it."""
    return {name: "a branch of the last layer" for name in ("last.up.weight", "last.down.weight") if name in shapes}


FAMILY = Family(
    "krea2",
    (
        Architecture(
            "transformer",
            "diffusers.Krea2Transformer2DModel",
            _transformer,
            _inputs,
            published={"krea/Krea-2-Raw": _RAW, "krea/Krea-2-Turbo": _RAW},
            layouts={"original": _ORIGINAL},
            unverified={"axes_dims_rope": (32, 48, 48)},
            beside=("last.up.weight", "last.down.weight"),
            extras=_not_in_the_class,
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                16,
                spatial=8,
                patch=2,
                patch_entry=None,
                packed=True,
                guidance="passes",
                autoencoder=AutoencoderEntries(halvings("temperal_downsample"), channels=entry("z_dim")),
            ),
        ),
    ),
    repositories={
        name: Repository(
            "diffusers.Krea2Pipeline",
            {
                "transformer": Component("diffusers.Krea2Transformer2DModel", name),
                "vae": Component("diffusers.AutoencoderKLQwenImage", "Qwen/Qwen-Image"),
                "text_encoder": Component("transformers.Qwen3VLModel", "Qwen/Qwen3-VL-4B-Instruct"),
            },
        )
        for name in ("krea/Krea-2-Raw", "krea/Krea-2-Turbo")
    },
)
