"""Stable Diffusion 1, 2 and XL: one UNet class whose levels, widths and prompts differ, and its ControlNets."""

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
from lading.catalog.keymap import KeyMap, Rule, rename
from lading.catalog.shapes import AbsentTensorError, Shapes, UnknownSizeError

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (_CROSS, _CROSS, _CROSS, _PLAIN),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
    "attention_head_dim": 8,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "time_cond_proj_dim": None,
    "sample_size": 64,
}
_SD21 = {
    **_SD15,
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "attention_head_dim": (5, 10, 20, 20),
    "upcast_attention": True,
    "sample_size": 96,
}
_SDXL = {
    **_SD15,
    "down_block_types": (_PLAIN, _CROSS, _CROSS),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "attention_head_dim": (5, 10, 20),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
_UNET_ONLY = ("out_channels", "up_block_types", "sample_size", "time_cond_proj_dim")
_CONTROLNET = {
    **{key: value for key, value in _SD15.items() if key not in _UNET_ONLY},
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
    "conditioning_channels": 3,
}


def _encoder(shapes: Shapes) -> dict[str, Any]:
    """The half that the UNet and its ControlNets share."""
    depth = shapes.count("down_blocks")
    if not depth:
        raise AbsentTensorError("down_blocks")
    widths = tuple(shapes.size(f"down_blocks.{level}.resnets.0.conv1.weight") for level in range(depth))
    attends = [shapes.has(f"down_blocks.{level}.attentions.0.norm.weight") for level in range(depth)]
    middle = shapes.count("mid_block.attentions.0.transformer_blocks")
    layers = [max(shapes.count(f"down_blocks.{level}.attentions.0.transformer_blocks"), 1) for level in range(depth)]
    if not attends[-1] and middle:
        layers[-1] = middle
    linear = len(shapes.shape("mid_block.attentions.0.proj_in.weight")) == 2
    config = {
        "in_channels": shapes.size("conv_in.weight", 1),
        "down_block_types": tuple(_CROSS if attention else _PLAIN for attention in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": widths,
        "layers_per_block": shapes.count("down_blocks.0.resnets"),
        "cross_attention_dim": shapes.size("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
        "transformer_layers_per_block": layers[0] if len(set(layers)) == 1 else tuple(layers),
        "use_linear_projection": linear,
        # Heads are eight in the first models and 64 wide in the later ones, which are linear.
        "attention_head_dim": tuple(max(width // 64, 1) for width in widths) if linear else 8,
    }
    sized = shapes.has("add_embedding.linear_1.weight")
    return {
        **config,
        "addition_embed_type": "text_time" if sized else None,
        "addition_time_embed_dim": 256 if sized else None,
        "projection_class_embeddings_input_dim": shapes.size("add_embedding.linear_1.weight", 1) if sized else None,
    }


def _unet(shapes: Shapes) -> dict[str, Any]:
    depth = shapes.count("up_blocks")
    attends = [shapes.has(f"up_blocks.{level}.attentions.0.norm.weight") for level in range(depth)]
    config = {
        **_encoder(shapes),
        "out_channels": shapes.size("conv_out.weight"),
        "up_block_types": tuple("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in attends),
    }
    guided = "time_embedding.cond_proj.weight"
    return {**config, "time_cond_proj_dim": shapes.size(guided, 1) if shapes.has(guided) else None}


def _controlnet(shapes: Shapes) -> dict[str, Any]:
    hint = "controlnet_cond_embedding"
    pairs = range(0, shapes.count(f"{hint}.blocks"), 2)
    widths = [shapes.size(f"{hint}.conv_in.weight")] + [shapes.size(f"{hint}.blocks.{n + 1}.weight") for n in pairs]
    return {
        **_encoder(shapes),
        "conditioning_embedding_out_channels": tuple(widths),
        "conditioning_channels": shapes.size(f"{hint}.conv_in.weight", 1),
    }


def _unet_inputs(config: Config, extent: Extent) -> Inputs:
    batch = extent.batch
    inputs: Inputs = {
        "sample": InputSpec((batch, config["in_channels"], extent.height // 8, extent.width // 8)),
        "timestep": InputSpec((batch,)),
        "encoder_hidden_states": InputSpec((batch, extent.tokens, config["cross_attention_dim"])),
    }
    if config.get("addition_embed_type") == "text_time":
        text = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": InputSpec((batch, text)), "time_ids": InputSpec((batch, 6))}
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = InputSpec((batch, config["time_cond_proj_dim"]))
    return inputs


def _controlnet_inputs(config: Config, extent: Extent) -> Inputs:
    picture = InputSpec((extent.batch, config["conditioning_channels"], extent.height, extent.width))
    return {**_unet_inputs(config, extent), "controlnet_cond": picture}


_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_MOST_LEVELS = 16
_TRANSFORMER = ("norm", "proj_in", "proj_out", "transformer_blocks")


def _original(shapes: Shapes) -> KeyMap:
    """The names of latent-diffusion's UNet: its blocks are counted through, whatever their level."""
    if "input_blocks.0.0.weight" in shapes:
        samplers = [int(name.split(".")[1]) for name in shapes.find("input_blocks.{n}.0.op.weight")]
        depth = len(samplers) + 1
        layers = (samplers[0] if samplers else shapes.count("input_blocks")) - 1
    else:
        depth, layers = shapes.count("down_blocks"), shapes.count("down_blocks.0.resnets")
    if max(depth, layers) > _MOST_LEVELS:
        raise UnknownSizeError(f"levels that a UNet can have: {depth} of {layers} layers")
    rules = [rename(f"{file}.{{leaf}}", f"{model}.{{leaf}}") for file, model in _ENDS]
    rules += _resnet("middle_block.0", "mid_block.resnets.0") + _resnet("middle_block.2", "mid_block.resnets.1")
    rules += _attention("middle_block.1", "mid_block.attentions.0")
    for level in range(depth):
        for layer in range(layers + 1):
            block = 1 + level * (layers + 1) + layer
            if layer < layers:
                rules += _resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
                rules += _attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}")
            elif level < depth - 1:
                sampler = f"down_blocks.{level}.downsamplers.0.conv"
                rules.append(rename(f"input_blocks.{block}.0.op.{{leaf}}", f"{sampler}.{{leaf}}"))
            rules += _resnet(f"output_blocks.{block - 1}.0", f"up_blocks.{level}.resnets.{layer}")
            rules += _attention(f"output_blocks.{block - 1}.1", f"up_blocks.{level}.attentions.{layer}")
        last = f"output_blocks.{level * (layers + 1) + layers}"
        attends = f"{last}.2.conv.weight" in shapes or f"up_blocks.{level}.attentions.0.norm.weight" in shapes
        sampler = f"up_blocks.{level}.upsamplers.0.conv"
        rules.append(rename(f"{last}.{2 if attends else 1}.conv.{{leaf}}", f"{sampler}.{{leaf}}"))
    return KeyMap(tuple(rules))


def _original_controlnet(shapes: Shapes) -> KeyMap:
    """ControlNet's own names: the UNet's first half, a convolution after each of its blocks, and the hint's own."""
    hint, blocks = "controlnet_cond_embedding", "input_hint_block"
    last = shapes.count(blocks) - 1 if shapes.has(f"{blocks}.0.weight") else 2 * shapes.count(f"{hint}.blocks") + 2
    if last > 2 * _MOST_LEVELS:
        raise UnknownSizeError(f"convolutions that a hint can have: {blocks} has {last}")
    rules = [
        rename("zero_convs.{n}.0.{leaf}", "controlnet_down_blocks.{n}.{leaf}"),
        rename("middle_block_out.0.{leaf}", "controlnet_mid_block.{leaf}"),
        rename(f"{blocks}.0.{{leaf}}", f"{hint}.conv_in.{{leaf}}"),
        rename(f"{blocks}.{last}.{{leaf}}", f"{hint}.conv_out.{{leaf}}"),
        *(
            rename(f"{blocks}.{number}.{{leaf}}", f"{hint}.blocks.{number // 2 - 1}.{{leaf}}")
            for number in range(2, last, 2)
        ),
    ]
    return KeyMap((*rules, *_original(shapes).rules))


def _resnet(file: str, model: str) -> list[Rule]:
    return [rename(f"{file}.{old}.{{leaf}}", f"{model}.{new}.{{leaf}}") for old, new in _RESNET]


def _attention(file: str, model: str) -> list[Rule]:
    return [rename(f"{file}.{name}.{{rest}}", f"{model}.{name}.{{rest}}") for name in _TRANSFORMER]


_LORA = ("to_q", "to_k", "to_v", "to_out.0")
_LATENT = LatentNumbers(
    ("batch", "channels", "height", "width"), 4, spatial=8, guidance_entries=("time_cond_proj_dim",)
)
_UNVERIFIED = {"attention_head_dim": 8, "addition_time_embed_dim": None, "upcast_attention": False}

_FIRST, _XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"


_TEXT_ENCODER = Component("transformers.CLIPTextModel", "openai/clip-vit-large-patch14")


def _repository(name: str, pipeline: str, vae: str = _FIRST, text_encoder: Component = _TEXT_ENCODER) -> Repository:
    parts = {
        "unet": Component("diffusers.UNet2DConditionModel", name),
        "vae": Component("diffusers.AutoencoderKL", vae),
        "text_encoder": text_encoder,
    }
    if vae == _XL:
        parts["text_encoder_2"] = Component("transformers.CLIPTextModelWithProjection", _XL)
    return Repository(f"diffusers.{pipeline}", parts)


FAMILY = Family(
    "stable_diffusion",
    (
        Architecture(
            "unet",
            "diffusers.UNet2DConditionModel",
            _unet,
            _unet_inputs,
            published={
                "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15,
                "stable-diffusion-v1-5/stable-diffusion-inpainting": {**_SD15, "in_channels": 9},
                "stabilityai/stable-diffusion-2-1": _SD21,
                "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
                "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": {**_SDXL, "in_channels": 9},
                "latent-consistency/lcm-sdxl": {**_SDXL, "time_cond_proj_dim": 256},
            },
            layouts={"original": _original},
            unverified={**_UNVERIFIED, "sample_size": 64},
            lora_targets=_LORA,
            kohya_layout=lambda config: "original" if config.get("addition_embed_type") else "diffusers",
            latent=_LATENT,
        ),
        Architecture(
            "controlnet",
            "diffusers.ControlNetModel",
            _controlnet,
            _controlnet_inputs,
            published={
                "lllyasviel/control_v11p_sd15_canny": _CONTROLNET,
                "diffusers/controlnet-canny-sdxl-1.0": {
                    **_CONTROLNET,
                    **{key: value for key, value in _SDXL.items() if key not in _UNET_ONLY},
                },
            },
            layouts={"original": _original_controlnet},
            unverified=_UNVERIFIED,
            lora_targets=_LORA,
        ),
    ),
    repositories={
        "stable-diffusion-v1-5/stable-diffusion-v1-5": _repository(_FIRST, "StableDiffusionPipeline"),
        "stable-diffusion-v1-5/stable-diffusion-inpainting": _repository(
            "stable-diffusion-v1-5/stable-diffusion-inpainting", "StableDiffusionInpaintPipeline"
        ),
        "stabilityai/stable-diffusion-2-1": _repository(
            "stabilityai/stable-diffusion-2-1",
            "StableDiffusionPipeline",
            text_encoder=Component("transformers.CLIPTextModel", "stabilityai/stable-diffusion-2-1", layers=23),
        ),
        "stabilityai/stable-diffusion-xl-base-1.0": _repository(_XL, "StableDiffusionXLPipeline", vae=_XL),
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": _repository(
            "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "StableDiffusionXLInpaintPipeline", vae=_XL
        ),
    },
)
