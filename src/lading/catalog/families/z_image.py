"""Z-Image: pictures from prompts, and the ControlNets and the Omni variant of it. https://github.com/Tongyi-MAI/Z-Image"""

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
from lading.catalog.keymap import KeyMap, rename, split
from lading.catalog.shapes import Shapes, quotient

_BASE: Config = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "siglip_feat_dim": None,
    "axes_dims": [32, 48, 48],
}
_CONTROL = {
    "control_layers_places": [0, 5, 10, 15, 20, 25],
    "control_refiner_layers_places": None,
    "control_in_dim": 16,
    "add_control_noise_refiner": None,
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "dim": 3840,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
}
_CONTROL_2 = {
    **_CONTROL,
    "control_layers_places": list(range(0, 30, 2)),
    "control_refiner_layers_places": [0, 1],
    "control_in_dim": 33,
    "add_control_noise_refiner": "control_noise_refiner",
}


def _patches(shapes: Shapes, embedder: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The patch sizes that the names of the embedders state: "2-1" is 2 pixels by 1 frame."""
    found = sorted(
        name[len(embedder) + 1 :].partition(".")[0] for name in shapes.find(f"{embedder}.{{n}}-{{m}}.weight")
    )
    pairs = [tuple(map(int, one.split("-"))) for one in found]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def _heads(shapes: Shapes, blocks: str, width: int) -> int:
    return quotient(width, shapes.size(f"{blocks}.{{n}}.attention.norm_q.weight"), "heads")


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width = shapes.size("x_pad_token", 1)
    pixels, frames = _patches(shapes, "all_x_embedder")
    first = f"all_x_embedder.{pixels[0]}-{frames[0]}.weight" if pixels else "all_x_embedder.2-1.weight"
    heads = _heads(shapes, "layers", width)
    head, siglip = width // heads, "siglip_embedder.0.weight"
    return {
        "all_patch_size": pixels,
        "all_f_patch_size": frames,
        "in_channels": quotient(shapes.size(first, 1), pixels[0] ** 2 * frames[0], "channels of a patch"),
        "dim": width,
        "n_layers": shapes.count("layers"),
        "n_refiner_layers": shapes.count("noise_refiner"),
        "n_heads": heads,
        "n_kv_heads": quotient(shapes.size("layers.{n}.attention.to_k.weight"), head, "heads of keys"),
        "qk_norm": True,
        "cap_feat_dim": shapes.size("cap_embedder.0.weight"),
        "siglip_feat_dim": shapes.size(siglip) if shapes.has(siglip) else None,
        # 32, 48, 48 of 128 in every published model
        "axes_dims": [head - head * 3 // 8 // 2 * 4, *(head * 3 // 8 // 2 * 2,) * 2],
    }


def _controlnet(shapes: Shapes) -> dict[str, Any]:
    width = shapes.size("control_layers.{n}.before_proj.weight")
    pixels, frames = _patches(shapes, "control_all_x_embedder")
    first = f"control_all_x_embedder.{pixels[0]}-{frames[0]}.weight" if pixels else "control_all_x_embedder.2-1.weight"
    heads = _heads(shapes, "control_layers", width)
    layers = shapes.count("control_layers")
    refiner: str | None = None
    if shapes.has("control_noise_refiner.{n}.after_proj.weight"):
        refiner = "control_noise_refiner"
    elif not shapes.count("control_noise_refiner"):
        refiner = "control_layers"
    stride = max(30 // max(layers, 1), 1)
    refined = shapes.count("control_noise_refiner") or 2
    return {
        "control_layers_places": [layer * stride for layer in range(layers)],
        "control_refiner_layers_places": [0, 1] if refiner else None,
        "control_in_dim": quotient(shapes.size(first, 1), pixels[0] ** 2 * frames[0], "channels of a patch"),
        "add_control_noise_refiner": refiner,
        "all_patch_size": pixels,
        "all_f_patch_size": frames,
        "dim": width,
        "n_refiner_layers": refined,
        "n_heads": heads,
        "n_kv_heads": heads,
        "qk_norm": True,
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    latent = (config["in_channels"], extent.num_frames, extent.height // 8, extent.width // 8)
    text = InputSpec((extent.tokens, config["cap_feat_dim"]))
    inputs: Inputs = {
        "x": [InputSpec(latent)] * extent.batch,
        "t": InputSpec((extent.batch,)),
        "cap_feats": [text] * extent.batch,
    }
    if config.get("siglip_feat_dim"):
        inputs["x"] = [[InputSpec(latent)]] * extent.batch
        inputs["cap_feats"] = [[text]] * extent.batch
        inputs["siglip_feats"] = [[None]] * extent.batch
        inputs["image_noise_mask"] = [[1]] * extent.batch
    return inputs


def _refines(config: Config, shapes: Shapes) -> bool:
    """Whether the layers that refine a ControlNet's noise are there; of 2.0 and 2.1 the same tensors are published."""
    if config["add_control_noise_refiner"] == "control_layers":
        return True
    adds = shapes.has("control_noise_refiner.{n}.after_proj.weight")
    return shapes.has("control_noise_refiner.{n}.attention.to_q.weight") and adds == bool(
        config["add_control_noise_refiner"]
    )


def _controlnet_inputs(config: Config, extent: Extent) -> Inputs:
    picture = (extent.num_frames, extent.height // 8, extent.width // 8)
    return {
        "x": [InputSpec((_BASE["in_channels"], *picture))] * extent.batch,
        "t": InputSpec((extent.batch,)),
        "cap_feats": [InputSpec((extent.tokens, _BASE["cap_feat_dim"]))] * extent.batch,
        "control_context": [InputSpec((config["control_in_dim"], *picture))] * extent.batch,
    }


_BLOCKS = ("layers", "noise_refiner", "context_refiner", "siglip_refiner")
_ORIGINAL = KeyMap(
    (
        rename("final_layer.{rest}", "all_final_layer.2-1.{rest}"),
        rename("x_embedder.{rest}", "all_x_embedder.2-1.{rest}"),
        *(
            rule
            for blocks in _BLOCKS
            for rule in (
                split(
                    f"{blocks}.{{n}}.attention.qkv.{{leaf}}",
                    *(f"{blocks}.{{n}}.attention.to_{name}.{{leaf}}" for name in "qkv"),
                ),
                rename(f"{blocks}.{{n}}.attention.out.{{leaf}}", f"{blocks}.{{n}}.attention.to_out.0.{{leaf}}"),
                rename(f"{blocks}.{{n}}.attention.q_norm.{{leaf}}", f"{blocks}.{{n}}.attention.norm_q.{{leaf}}"),
                rename(f"{blocks}.{{n}}.attention.k_norm.{{leaf}}", f"{blocks}.{{n}}.attention.norm_k.{{leaf}}"),
                rename(f"{blocks}.{{n}}.{{rest}}", f"{blocks}.{{n}}.{{rest}}"),
            )
        ),
        *(rename(f"{name}.{{rest}}", f"{name}.{{rest}}") for name in ("t_embedder", "cap_embedder", "siglip_embedder")),
        *(rename(name, name) for name in ("x_pad_token", "cap_pad_token", "siglip_pad_token")),
    )
)


def _repository(name: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.ZImageTransformer2DModel", name),
        "vae": Component("diffusers.AutoencoderKL", "Tongyi-MAI/Z-Image-Turbo"),
        "text_encoder": Component("transformers.Qwen3Model", "Qwen/Qwen3-4B"),
    }
    if "Omni" not in name:
        return Repository("diffusers.ZImagePipeline", parts)
    parts["siglip"] = Component("transformers.Siglip2VisionModel", name)
    return Repository("diffusers.ZImageOmniPipeline", parts)


FAMILY = Family(
    "z_image",
    (
        Architecture(
            "transformer",
            "diffusers.ZImageTransformer2DModel",
            _transformer,
            _inputs,
            published={
                "Tongyi-MAI/Z-Image-Turbo": _BASE,
                "Tongyi-MAI/Z-Image": _BASE,
                "Tongyi-MAI/Z-Image-Omni-Base": {**_BASE, "siglip_feat_dim": 1152},
            },
            layouts={"original": _ORIGINAL},
            unverified={"axes_dims": [32, 48, 48]},
            beside=("norm_final.weight",),
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                16,
                spatial=8,
                patch=2,
                patch_entry="all_patch_size",
                token_multiple=32,
            ),
        ),
        Architecture(
            "controlnet",
            "diffusers.ZImageControlNetModel",
            _controlnet,
            _controlnet_inputs,
            published={
                "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union": _CONTROL,
                "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union-2.0": {
                    **_CONTROL_2,
                    "add_control_noise_refiner": "control_layers",
                },
                "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union-2.1": _CONTROL_2,
            },
            unverified={
                "control_layers_places": [],
                "control_refiner_layers_places": None,
                "add_control_noise_refiner": None,
            },
            beside=("control_noise_refiner.{rest}",),  # of 2.0, which does not use it
            lent=(
                *("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner"),
                *("context_refiner", "x_pad_token", "cap_pad_token"),
            ),
            fits=_refines,
            lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        ),
    ),
    repositories={
        "Tongyi-MAI/Z-Image-Turbo": _repository("Tongyi-MAI/Z-Image-Turbo"),
        "Tongyi-MAI/Z-Image": _repository("Tongyi-MAI/Z-Image"),
        "Tongyi-MAI/Z-Image-Omni-Base": _repository("Tongyi-MAI/Z-Image-Omni-Base"),
    },
)
