"""ERNIE-Image: pictures from prompts. https://huggingface.co/baidu"""

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
from lading.catalog.shapes import Shapes, quotient

_BASE = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_layers": 36,
    "ffn_hidden_size": 12288,
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "text_in_dim": 3072,
    "rope_axes_dim": (32, 48, 48),
    "qk_layernorm": True,
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels, patch, _ = shapes.shape("x_embedder.proj.weight")
    head = shapes.size("layers.{n}.self_attention.norm_q.weight")
    text = shapes.size("text_proj.weight", 1) if shapes.has("text_proj.weight") else width
    axis = head // 16 * 6  # 32, 48, 48 of 128
    return {
        "hidden_size": width,
        "num_attention_heads": quotient(width, head, "heads"),
        "num_layers": shapes.count("layers"),
        "ffn_hidden_size": shapes.size("layers.{n}.mlp.gate_proj.weight"),
        "in_channels": in_channels,
        "out_channels": quotient(shapes.size("final_linear.weight"), patch**2, "channels of a patch"),
        "patch_size": patch,
        "text_in_dim": text,
        "rope_axes_dim": (head - 2 * axis, axis, axis),
        "qk_layernorm": True,
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    return {
        "hidden_states": InputSpec((extent.batch, config["in_channels"], extent.height // 16, extent.width // 16)),
        "timestep": InputSpec((extent.batch,)),
        "text_bth": InputSpec((extent.batch, extent.tokens, config["text_in_dim"])),
        "text_lens": InputSpec((extent.batch,), "int64"),
    }


FAMILY = Family(
    "ernie_image",
    (
        Architecture(
            "transformer",
            "diffusers.ErnieImageTransformer2DModel",
            _transformer,
            _inputs,
            published={"baidu/ERNIE-Image": _BASE, "baidu/ERNIE-Image-Turbo": _BASE},
            examples=({**_BASE, "num_layers": 1, "text_in_dim": 4096},),
            unverified={"rope_axes_dim": (32, 48, 48)},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(("batch", "channels", "height", "width"), 128, spatial=8, folded=2),
        ),
    ),
    repositories={
        name: Repository(
            "diffusers.ErnieImagePipeline",
            {
                "transformer": Component("diffusers.ErnieImageTransformer2DModel", name),
                "vae": Component("diffusers.AutoencoderKLFlux2", "black-forest-labs/FLUX.2-dev"),
                "text_encoder": Component("transformers.Mistral3Model", "baidu/ERNIE-Image"),
                "pe": Component("transformers.Ministral3ForCausalLM", "baidu/ERNIE-Image"),
            },
        )
        for name in ("baidu/ERNIE-Image", "baidu/ERNIE-Image-Turbo")
    },
)
