"""The autoencoder of Stable Diffusion, SDXL, SD3, FLUX.1 and Z-Image: one class, several scales of the latent."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, Rule, rename, squeeze
from lading.catalog.shapes import Shapes

_SD = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,
}
_SDXL = {**_SD, "sample_size": 1024, "scaling_factor": 0.13025}
_SD3 = {
    **_SDXL,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
_FLUX = {**_SD3, "scaling_factor": 0.3611, "shift_factor": 0.1159}


def infer_autoencoder(shapes: Shapes) -> dict[str, Any]:
    """The sizes of an `AutoencoderKL` or one of its kin."""
    depth = shapes.count("encoder.down_blocks")
    widths = [shapes.size(f"encoder.down_blocks.{number}.resnets.0.conv1.weight") for number in range(depth)]
    return {
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.weight"),
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
        "block_out_channels": tuple(widths),
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets"),
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "use_quant_conv": shapes.has("quant_conv.weight"),
        "use_post_quant_conv": shapes.has("post_quant_conv.weight"),
        "mid_block_add_attention": shapes.has("encoder.mid_block.attentions.0.to_q.weight"),
    }


def autoencoder_inputs(config: Config, extent: Extent) -> Inputs:
    """One picture."""
    return {"sample": InputSpec((extent.batch, config["in_channels"], extent.height, extent.width))}


def original_rules(shapes: Shapes) -> KeyMap:
    """The names of latent-diffusion's `ddconfig` autoencoders; the decoder counts its levels the other way round."""
    depth = max(shapes.count("encoder.down"), shapes.count("encoder.down_blocks"))
    rules: list[Rule] = []
    for part in ("encoder", "decoder"):
        rules += [
            rename(f"{part}.mid.block_1.{{rest}}", f"{part}.mid_block.resnets.0.{{rest}}"),
            rename(f"{part}.mid.block_2.{{rest}}", f"{part}.mid_block.resnets.1.{{rest}}"),
            rename(f"{part}.mid.attn_1.norm.{{leaf}}", f"{part}.mid_block.attentions.0.group_norm.{{leaf}}"),
            *(
                squeeze(f"{part}.mid.attn_1.{file}.{{leaf}}", f"{part}.mid_block.attentions.0.{model}.{{leaf}}")
                for file, model in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
            ),
            rename(f"{part}.norm_out.{{leaf}}", f"{part}.conv_norm_out.{{leaf}}"),
            rename(f"{part}.conv_in.{{leaf}}", f"{part}.conv_in.{{leaf}}"),
            rename(f"{part}.conv_out.{{leaf}}", f"{part}.conv_out.{{leaf}}"),
        ]
    for number in range(depth):
        for level, block, sampler in (
            (f"encoder.down.{number}", f"encoder.down_blocks.{number}", "down"),
            (f"decoder.up.{depth - 1 - number}", f"decoder.up_blocks.{number}", "up"),
        ):
            rules += [
                rename(f"{level}.block.{{n}}.nin_shortcut.{{leaf}}", f"{block}.resnets.{{n}}.conv_shortcut.{{leaf}}"),
                rename(f"{level}.block.{{n}}.{{rest}}", f"{block}.resnets.{{n}}.{{rest}}"),
                rename(f"{level}.{sampler}sample.{{rest}}", f"{block}.{sampler}samplers.0.{{rest}}"),
            ]
    rules += [rename(f"{name}.{{leaf}}", f"{name}.{{leaf}}") for name in ("quant_conv", "post_quant_conv")]
    return KeyMap(tuple(rules))


OLD_ATTENTION = KeyMap(
    (
        *(
            rename(
                f"{part}.mid_block.attentions.{{n}}.{file}.{{leaf}}",
                f"{part}.mid_block.attentions.{{n}}.{model}.{{leaf}}",
            )
            for part in ("encoder", "decoder")
            for file, model in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
        ),
        rename("{rest}", "{rest}"),
    )
)
"""The names of attention before diffusers 0.18."""

FAMILY = Family(
    "autoencoder_kl",
    (
        Architecture(
            "vae",
            "diffusers.AutoencoderKL",
            infer_autoencoder,
            autoencoder_inputs,
            published={
                "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD,
                "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
                "stabilityai/stable-diffusion-3.5-large": _SD3,
                "black-forest-labs/FLUX.1-dev": _FLUX,
                "Tongyi-MAI/Z-Image-Turbo": _FLUX,
            },
            layouts={"original": original_rules, "diffusers (attention before 0.18)": OLD_ATTENTION},
            unverified={"scaling_factor": 0.18215, "shift_factor": None, "sample_size": 512, "force_upcast": True},
        ),
    ),
)
