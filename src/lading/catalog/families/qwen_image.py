"""Qwen-Image: pictures from prompts, its editors, layers and ControlNets. https://github.com/QwenLM/Qwen-Image"""

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
from lading.catalog.families import _causal_vae
from lading.catalog.families._rotary import three_axes
from lading.catalog.shapes import Shapes, quotient
from lading.latents.compression import AutoencoderEntries, entry, halvings

_BASE = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
    "zero_cond_t": False,
}
_CONTROL = {key: _BASE[key] for key in list(_BASE)[:7]}
_BLOCKWISE = {"num_layers": 60, "condition_channels": 64, "dim": 3072}
_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "input_channels": 3,
}


def _blocks(shapes: Shapes) -> dict[str, Any]:
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight")
    return {
        "in_channels": shapes.size("img_in.weight", 1),
        "num_layers": shapes.count("transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(shapes.size("img_in.weight"), head, "heads"),
        "joint_attention_dim": shapes.size("txt_in.weight", 1),
        "axes_dims_rope": three_axes(head),
    }


def _transformer(shapes: Shapes) -> dict[str, Any]:
    layered = shapes.has("time_text_embed.addition_t_embedding.weight")
    return {
        **_blocks(shapes),
        "out_channels": quotient(shapes.size("proj_out.weight"), 4, "channels of a 2x2 patch"),
        "use_additional_t_cond": layered,
        "use_layer3d_rope": layered,
    }


def _controlnet(shapes: Shapes) -> dict[str, Any]:
    config = _blocks(shapes)
    return {
        **config,
        "extra_condition_channels": shapes.size("controlnet_x_embedder.weight", 1) - config["in_channels"],
    }


def _blockwise(shapes: Shapes) -> dict[str, Any]:
    return {
        "num_layers": shapes.count("controlnet_blocks"),
        "condition_channels": shapes.size("img_in.weight", 1),
        "dim": shapes.size("img_in.weight"),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    return {**_causal_vae.infer_flat(shapes), "input_channels": shapes.size("encoder.conv_in.weight", 1)}


def _transformer_inputs(config: Config, extent: Extent) -> Inputs:
    height, width = extent.height // 16, extent.width // 16
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, height * width, config["in_channels"])),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["joint_attention_dim"])),
        "encoder_hidden_states_mask": InputSpec((extent.batch, extent.tokens), "bool"),
        "timestep": InputSpec((extent.batch,)),
        "img_shapes": [[(1, height, width)]] * extent.batch,
    }
    if config.get("use_additional_t_cond"):
        inputs["additional_t_cond"] = InputSpec((extent.batch,), "int64")
    return inputs


def _controlnet_inputs(config: Config, extent: Extent) -> Inputs:
    inputs = _transformer_inputs(config, extent)
    batch, tokens, channels = inputs["hidden_states"].shape
    channels += config.get("extra_condition_channels", 0)
    return {**inputs, "controlnet_cond": InputSpec((batch, tokens, channels))}


def _blockwise_inputs(config: Config, extent: Extent) -> Inputs:
    batch, tokens = extent.batch, (extent.height // 16) * (extent.width // 16)
    return {
        "hidden_states": InputSpec((batch, tokens, config["dim"])),
        "condition": InputSpec((batch, tokens, config["condition_channels"])),
    }


def _vae_inputs(config: Config, extent: Extent) -> Inputs:
    return _causal_vae.inputs(config["input_channels"], config, extent)


def _repository(name: str, pipeline: str) -> Repository:
    layered = "Qwen/Qwen-Image-Layered"
    parts = {
        "transformer": Component("diffusers.QwenImageTransformer2DModel", name),
        "vae": Component("diffusers.AutoencoderKLQwenImage", layered if name == layered else "Qwen/Qwen-Image"),
        "text_encoder": Component("transformers.Qwen2_5_VLForConditionalGeneration", "Qwen/Qwen2.5-VL-7B-Instruct"),
    }
    return Repository(f"diffusers.{pipeline}", parts)


FAMILY = Family(
    "qwen_image",
    (
        Architecture(
            "transformer",
            "diffusers.QwenImageTransformer2DModel",
            _transformer,
            _transformer_inputs,
            published={
                "Qwen/Qwen-Image": _BASE,
                "Qwen/Qwen-Image-2512": _BASE,
                "Qwen/Qwen-Image-Edit": _BASE,
                "Qwen/Qwen-Image-Edit-2509": _BASE,
                "Qwen/Qwen-Image-Edit-2511": {**_BASE, "zero_cond_t": True},
                "Qwen/Qwen-Image-Layered": {**_BASE, "use_additional_t_cond": True, "use_layer3d_rope": True},
            },
            unverified={"axes_dims_rope": (16, 56, 56), "zero_cond_t": False, "use_layer3d_rope": False},
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            kohya_layout=lambda _: "diffusers",
            latent=LatentNumbers(
                ("batch", "frames", "channels", "height", "width"),
                16,
                spatial=8,
                patch=2,
                patch_entry=None,
                packed=True,
                channels_entry="in_channels",
                layers_entry="use_layer3d_rope",
                guidance="passes",
                autoencoder=AutoencoderEntries(spatial=halvings("temperal_downsample"), channels=entry("z_dim")),
            ),
        ),
        Architecture(
            "controlnet",
            "diffusers.QwenImageControlNetModel",
            _controlnet,
            _controlnet_inputs,
            published={
                "InstantX/Qwen-Image-ControlNet-Union": {**_CONTROL, "num_layers": 5, "extra_condition_channels": 0},
                "InstantX/Qwen-Image-ControlNet-Inpainting": {
                    **_CONTROL,
                    "num_layers": 6,
                    "extra_condition_channels": 4,
                },
            },
            unverified={"axes_dims_rope": (16, 56, 56), "out_channels": 16},
        ),
        Architecture(
            "controlnet",
            "lading.models.QwenImageBlockwiseControlNet",
            _blockwise,
            _blockwise_inputs,
            published={
                "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Canny": _BLOCKWISE,
                "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Depth": _BLOCKWISE,
                "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Inpaint": {**_BLOCKWISE, "condition_channels": 68},
            },
            own_layout="diffsynth",
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderKLQwenImage",
            _vae,
            _vae_inputs,
            published={"Qwen/Qwen-Image": _VAE, "Qwen/Qwen-Image-Layered": {**_VAE, "input_channels": 4}},
        ),
    ),
    repositories={
        name: _repository(name, pipeline)
        for name, pipeline in {
            "Qwen/Qwen-Image": "QwenImagePipeline",
            "Qwen/Qwen-Image-2512": "QwenImagePipeline",
            "Qwen/Qwen-Image-Edit": "QwenImageEditPipeline",
            "Qwen/Qwen-Image-Edit-2509": "QwenImageEditPlusPipeline",
            "Qwen/Qwen-Image-Edit-2511": "QwenImageEditPlusPipeline",
            "Qwen/Qwen-Image-Layered": "QwenImageLayeredPipeline",
        }.items()
    },
)
