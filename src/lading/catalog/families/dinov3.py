"""DINOv3: pictures to features. https://github.com/facebookresearch/dinov3"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes

_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 16,
    "num_register_tokens": 4,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
}
_7B = {
    **_LARGE,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "query_bias": False,
    "value_bias": False,
    "use_gated_mlp": True,
    "hidden_act": "silu",
}


def _vit(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes.shape("embeddings.patch_embeddings.weight")
    layer = "model.layer.{n}"
    return {
        "hidden_size": width,
        "intermediate_size": shapes.size(f"{layer}.mlp.up_proj.weight"),
        "num_hidden_layers": shapes.count("model.layer"),
        "num_attention_heads": 32 if width == 4096 else max(width // 64, 1),
        "num_channels": channels,
        "patch_size": patch,
        "num_register_tokens": shapes.shape("embeddings.register_tokens")[1],
        "query_bias": shapes.has(f"{layer}.attention.q_proj.bias"),
        "key_bias": shapes.has(f"{layer}.attention.k_proj.bias"),
        "value_bias": shapes.has(f"{layer}.attention.v_proj.bias"),
        "proj_bias": shapes.has(f"{layer}.attention.o_proj.bias"),
        "mlp_bias": shapes.has(f"{layer}.mlp.up_proj.bias"),
        "use_gated_mlp": shapes.has(f"{layer}.mlp.gate_proj.weight"),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    patch = config["patch_size"]
    height, width = (size // patch * patch for size in (extent.height, extent.width))
    return {"pixel_values": InputSpec((extent.batch, config["num_channels"], height, width))}


_OLD = KeyMap((rename("layer.{rest}", "model.layer.{rest}"), rename("{rest}", "{rest}")))

FAMILY = Family(
    "dinov3",
    (
        Architecture(
            "image_encoder",
            "transformers.DINOv3ViTModel",
            _vit,
            _inputs,
            published={
                "facebook/dinov3-vitl16-pretrain-lvd1689m": _LARGE,
                "facebook/dinov3-vit7b16-pretrain-lvd1689m": _7B,
            },
            layouts={"hub (layer. prefix)": _OLD},
            own_layout="hub",
            unverified={"num_attention_heads": None, "hidden_act": "gelu"},
        ),
    ),
)
