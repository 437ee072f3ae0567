"""FLUX.1: text to image, and its kin that fill, redraw, and are controlled. https://github.com/black-forest-labs/flux"""

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
from lading.catalog.families._rotary import three_axes
from lading.catalog.keymap import KeyMap, Rule, rename, split, swap_halves
from lading.catalog.shapes import Shapes, quotient

_DEV = {
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
_CONTROL = {
    **{key: value for key, value in _DEV.items() if key != "out_channels"},
    "num_mode": None,
    "patch_size": 1,
    "conditioning_embedding_channels": None,
}
_XLABS_CONTROLNET = {
    **_CONTROL,
    "num_layers": 2,
    "num_single_layers": 0,
    "patch_size": 2,
    "conditioning_embedding_channels": 16,
}


def _blocks(shapes: Shapes) -> dict[str, Any]:
    """What the transformer and its ControlNets have in common."""
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight")
    return {
        "in_channels": shapes.size("x_embedder.weight", 1),
        "num_layers": shapes.count("transformer_blocks"),
        "num_single_layers": shapes.count("single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(shapes.size("x_embedder.weight"), head, "heads"),
        "joint_attention_dim": shapes.size("context_embedder.weight", 1),
        "pooled_projection_dim": shapes.size("time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": shapes.has("time_text_embed.guidance_embedder.linear_1.weight"),
        "axes_dims_rope": three_axes(head),
    }


def _transformer(shapes: Shapes) -> dict[str, Any]:
    config = _blocks(shapes)
    out_channels = shapes.size("proj_out.weight")
    return {**config, "out_channels": None if out_channels == config["in_channels"] else out_channels}


def _controlnet(shapes: Shapes) -> dict[str, Any]:
    config = _blocks(shapes)
    modes = shapes.size("controlnet_mode_embedder.weight") if shapes.has("controlnet_mode_embedder.weight") else None
    hint = "input_hint_block.conv_out.weight"
    return {
        **config,
        "num_mode": modes,
        "patch_size": 2 if shapes.has(hint) else 1,
        "conditioning_embedding_channels": shapes.size(hint) if shapes.has(hint) else None,
    }


def _wider_condition(shapes: Shapes) -> dict[str, str]:
    """A mask beside the picture, as alimama's inpainting has it; diffusers' class has no argument for it."""
    name = "controlnet_x_embedder.weight"
    extra = shapes.size(name, 1) - shapes.size("x_embedder.weight", 1) if name in shapes else 0
    return {name: f"a condition of {extra} more channels than the latent's"} if extra else {}


def _redux(shapes: Shapes) -> dict[str, Any]:
    return {"redux_dim": shapes.size("redux_up.weight", 1), "txt_in_features": shapes.size("redux_down.weight")}


def _transformer_inputs(config: Config, extent: Extent) -> Inputs:
    batch, tokens = extent.batch, extent.height // 16 * (extent.width // 16)
    inputs = {
        "hidden_states": InputSpec((batch, tokens, config["in_channels"])),
        "encoder_hidden_states": InputSpec((batch, extent.tokens, config["joint_attention_dim"])),
        "pooled_projections": InputSpec((batch, config["pooled_projection_dim"])),
        "timestep": InputSpec((batch,)),
        "img_ids": InputSpec((tokens, 3)),
        "txt_ids": InputSpec((extent.tokens, 3)),
    }
    return {**inputs, "guidance": InputSpec((batch,))} if config.get("guidance_embeds") else inputs


def _controlnet_inputs(config: Config, extent: Extent) -> Inputs:
    inputs = _transformer_inputs(config, extent)
    inputs["controlnet_cond"] = inputs["hidden_states"]
    if config.get("conditioning_embedding_channels"):  # it is the picture itself then, and not its latent
        inputs["controlnet_cond"] = InputSpec((extent.batch, 3, extent.height, extent.width))
    if config.get("num_mode"):
        inputs["controlnet_mode"] = InputSpec((extent.batch, 1), "int64")
    return inputs


def _redux_inputs(config: Config, extent: Extent) -> Inputs:
    return {"x": InputSpec((extent.batch, 729, config["redux_dim"]))}


def _stream(
    file: str, model: str, mlp: str, attention: tuple[str, str, str, str], norms: tuple[str, str]
) -> list[Rule]:
    """One of the two streams of a double block."""
    block, target = "double_blocks.{n}.", "transformer_blocks.{n}."
    return [
        rename(f"{block}{file}_mod.lin.{{leaf}}", f"{target}{model}.linear.{{leaf}}"),
        split(f"{block}{file}_attn.qkv.{{leaf}}", *(f"{target}attn.{name}.{{leaf}}" for name in attention[:3])),
        rename(f"{block}{file}_attn.proj.{{leaf}}", f"{target}attn.{attention[3]}.{{leaf}}"),
        rename(f"{block}{file}_attn.norm.query_norm.scale", f"{target}attn.{norms[0]}.weight"),
        rename(f"{block}{file}_attn.norm.key_norm.scale", f"{target}attn.{norms[1]}.weight"),
        rename(f"{block}{file}_mlp.0.{{leaf}}", f"{target}{mlp}.net.0.proj.{{leaf}}"),
        rename(f"{block}{file}_mlp.2.{{leaf}}", f"{target}{mlp}.net.2.{{leaf}}"),
    ]


_ORIGINAL = KeyMap(
    (
        rename("img_in.{leaf}", "x_embedder.{leaf}"),
        rename("txt_in.{leaf}", "context_embedder.{leaf}"),
        *(
            rename(f"{file}.{end}_layer.{{leaf}}", f"time_text_embed.{model}.linear_{number}.{{leaf}}")
            for file, model in (
                ("time_in", "timestep_embedder"),
                ("guidance_in", "guidance_embedder"),
                ("vector_in", "text_embedder"),
            )
            for end, number in (("in", 1), ("out", 2))
        ),
        *_stream("img", "norm1", "ff", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
        *_stream(
            "txt",
            "norm1_context",
            "ff_context",
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            ("norm_added_q", "norm_added_k"),
        ),
        rename("single_blocks.{n}.modulation.lin.{leaf}", "single_transformer_blocks.{n}.norm.linear.{leaf}"),
        split(
            "single_blocks.{n}.linear1.{leaf}",
            *(f"single_transformer_blocks.{{n}}.{name}.{{leaf}}" for name in ("attn.to_q", "attn.to_k", "attn.to_v")),
            "single_transformer_blocks.{n}.proj_mlp.{leaf}",
            parts=(1, 1, 1, 4),
        ),
        rename("single_blocks.{n}.linear2.{leaf}", "single_transformer_blocks.{n}.proj_out.{leaf}"),
        rename("single_blocks.{n}.norm.query_norm.scale", "single_transformer_blocks.{n}.attn.norm_q.weight"),
        rename("single_blocks.{n}.norm.key_norm.scale", "single_transformer_blocks.{n}.attn.norm_k.weight"),
        swap_halves("final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
    )
)
_ORIGINAL_CONTROLNET = KeyMap(
    (
        rename("pos_embed_input.{leaf}", "controlnet_x_embedder.{leaf}"),
        rename("input_hint_block.0.{leaf}", "input_hint_block.conv_in.{leaf}"),
        *(
            rename(f"input_hint_block.{2 * number + 2}.{{leaf}}", f"input_hint_block.blocks.{number}.{{leaf}}")
            for number in range(6)
        ),
        rename("input_hint_block.14.{leaf}", "input_hint_block.conv_out.{leaf}"),
        *(
            rename(f"{name}.{{rest}}", f"{name}.{{rest}}")
            for name in ("controlnet_blocks", "controlnet_single_blocks", "controlnet_mode_embedder")
        ),
        *_ORIGINAL.rules,
    )
)
"""XLabs' own names. https://github.com/XLabs-AI/x-flux"""


def _processor(file: str, number: str, model: str, names: tuple[str, str, str, str]) -> list[Rule]:
    """What XLabs' trainer calls the attention of a block. https://github.com/XLabs-AI/x-flux"""
    return [
        split(f"{file}.{{n}}.processor.qkv_lora{number}.{{leaf}}", *(f"{model}.{{n}}.{n}.{{leaf}}" for n in names[:3])),
        rename(f"{file}.{{n}}.processor.proj_lora{number}.{{leaf}}", f"{model}.{{n}}.{names[3]}.{{leaf}}"),
    ]


_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_XLABS = KeyMap(
    (
        *_processor("double_blocks", "1", "transformer_blocks", _IMAGE_ATTENTION),
        *_processor("double_blocks", "2", "transformer_blocks", _TEXT_ATTENTION),
        *_processor("single_blocks", "", "single_transformer_blocks", (*_IMAGE_ATTENTION[:3], "proj_out")),
    )
)


def _repository(name: str, pipeline: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.FluxTransformer2DModel", name),
        "vae": Component("diffusers.AutoencoderKL", "black-forest-labs/FLUX.1-dev"),
        "text_encoder": Component("transformers.CLIPTextModel", "openai/clip-vit-large-patch14"),
        "text_encoder_2": Component("transformers.T5EncoderModel", "google/t5-v1_1-xxl"),
    }
    return Repository(f"diffusers.{pipeline}", parts)


_LORA = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)

FAMILY = Family(
    "flux",
    (
        Architecture(
            "transformer",
            "diffusers.FluxTransformer2DModel",
            _transformer,
            _transformer_inputs,
            published={
                "black-forest-labs/FLUX.1-dev": _DEV,
                "black-forest-labs/FLUX.1-Kontext-dev": _DEV,
                "black-forest-labs/FLUX.1-Krea-dev": _DEV,
                "black-forest-labs/FLUX.1-schnell": {**_DEV, "guidance_embeds": False},
                "black-forest-labs/FLUX.1-Fill-dev": {**_DEV, "in_channels": 384, "out_channels": 64},
                "black-forest-labs/FLUX.1-Canny-dev": {**_DEV, "in_channels": 128, "out_channels": 64},
                "black-forest-labs/FLUX.1-Depth-dev": {**_DEV, "in_channels": 128, "out_channels": 64},
            },
            layouts={"original": _ORIGINAL},
            unverified={"axes_dims_rope": (16, 56, 56)},
            lora_targets=_LORA,
            lora_layouts={"xlabs": _XLABS},
            kohya_layout=lambda _: "original",
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                16,
                spatial=8,
                patch=2,
                patch_entry=None,
                packed=True,
                guidance="passes",
            ),
        ),
        Architecture(
            "controlnet",
            "diffusers.FluxControlNetModel",
            _controlnet,
            _controlnet_inputs,
            published={
                "InstantX/FLUX.1-dev-Controlnet-Union-alpha": {
                    **_CONTROL,
                    "num_layers": 5,
                    "num_single_layers": 10,
                    "num_mode": 10,
                },
                "ByteDance/InfiniteYou": {**_CONTROL, "num_layers": 4, "num_single_layers": 10},
                "alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta": {
                    **_CONTROL,
                    "num_layers": 6,
                    "num_single_layers": 0,
                },
                "XLabs-AI/flux-controlnet-canny-diffusers": _XLABS_CONTROLNET,
                "XLabs-AI/flux-controlnet-depth-diffusers": _XLABS_CONTROLNET,
            },
            layouts={"original": _ORIGINAL_CONTROLNET},
            unverified={"axes_dims_rope": (16, 56, 56)},
            extras=_wider_condition,
            lora_targets=_LORA,
        ),
        Architecture(
            "image_embedder",
            "diffusers.ReduxImageEncoder",
            _redux,
            _redux_inputs,
            published={"black-forest-labs/FLUX.1-Redux-dev": {"redux_dim": 1152, "txt_in_features": 4096}},
        ),
    ),
    repositories={
        "black-forest-labs/FLUX.1-Redux-dev": Repository(
            "diffusers.FluxPriorReduxPipeline",
            {
                "image_encoder": Component("transformers.SiglipVisionModel", "google/siglip-so400m-patch14-384"),
                "image_embedder": Component("diffusers.ReduxImageEncoder", "black-forest-labs/FLUX.1-Redux-dev"),
            },
        ),
    }
    | {
        name: _repository(name, pipeline)
        for name, pipeline in {
            "black-forest-labs/FLUX.1-dev": "FluxPipeline",
            "black-forest-labs/FLUX.1-schnell": "FluxPipeline",
            "black-forest-labs/FLUX.1-Krea-dev": "FluxPipeline",
            "black-forest-labs/FLUX.1-Kontext-dev": "FluxKontextPipeline",
            "black-forest-labs/FLUX.1-Fill-dev": "FluxFillPipeline",
            "black-forest-labs/FLUX.1-Canny-dev": "FluxControlPipeline",
            "black-forest-labs/FLUX.1-Depth-dev": "FluxControlPipeline",
        }.items()
    },
)
