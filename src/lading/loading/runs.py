"""What a run of a pipeline makes: what was asked for, and the pipeline's own defaults for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lading.errors import ShapeError
from lading.latents import LatentFormat, LatentShape
from lading.loading.blueprint import Blueprint
from lading.loading.network import construction

_PICTURES = ("image", "control_image", "video")
_TOKENS = 512
"""Of a prompt, where neither the pipeline nor its text encoder says how many it takes."""


@dataclass(frozen=True)
class Wish:
    """What a caller asks for; None leaves it to the pipeline."""

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    batch_size: int = 1
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Run:
    """What is made, and how.

    Attributes:
        latent: of all pictures or films together, before guidance doubles it.
        guided: whether each step is guided away from a negative prompt.
        prompt_tokens: that text encoders make of a prompt.
        takes_picture: whether the pipeline needs a picture beside the prompt.
    """

    latent: LatentShape
    height: int
    width: int
    num_frames: int
    steps: int
    guided: bool
    prompt_tokens: int
    takes_picture: bool

    @property
    def batch_size(self) -> int:
        """Pictures or films that are made at once."""
        return self.latent.sizes["batch"]


def settle(
    wish: Wish, blueprint: Blueprint, latents: LatentFormat, modules: Mapping[str, torch.nn.Module], train: bool = False
) -> Run:
    """Fill in what a caller leaves open, as the pipeline does.

    Args:
        modules: the networks, built empty.
        train: there is no guidance in a step of training.

    Raises:
        ShapeError: half a size is given, the pipeline has no default, or the model cannot make it.
    """
    pipeline = _pipeline(blueprint, modules)
    takes: dict[str, Any] = {}
    if pipeline is not None:
        takes = {name: one.default for name, one in inspect.signature(type(pipeline).__call__).parameters.items()}
    denoiser = blueprint.networks[blueprint.denoisers[0]].config
    height, width = _size(wish, blueprint.name, takes, pipeline, denoiser, latents)
    frames = wish.num_frames or (_number(takes.get("num_frames")) or _number(denoiser.get("sample_frames")))
    if latents.frames is None:
        frames = wish.num_frames
    elif frames is None and _number(takes.get("layers")):
        frames = takes["layers"] + 1  # the whole picture comes first
    shape = latents.shape(wish.batch_size, height, width, frames)
    return Run(
        shape,
        height,
        width,
        frames or 1,
        wish.steps or _number(takes.get("num_inference_steps")) or 1,
        not train and _guided(wish, takes, latents),
        wish.prompt_tokens or _number(takes.get("max_sequence_length")) or _tokens_of_clip(modules) or _TOKENS,
        any(takes.get(name) is inspect.Parameter.empty for name in _PICTURES),
    )


def _pipeline(blueprint: Blueprint, modules: Mapping[str, torch.nn.Module]) -> Any:
    """The pipeline with its networks and without anything else; None where it cannot be made so."""
    import diffusers

    name = (blueprint.pipeline_class or "").rpartition(".")[2]
    pipeline_class = getattr(diffusers, name, None) if name else None
    if pipeline_class is None:
        return None
    takes = inspect.signature(pipeline_class.__init__).parameters
    parts: dict[str, Any] = {
        name: None for name, one in takes.items() if name != "self" and one.default is inspect.Parameter.empty
    }
    parts |= {name: module for name, module in modules.items() if name in takes}
    parts |= {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
    try:
        with construction():
            return pipeline_class(**parts)
    except (TypeError, ValueError, AttributeError, KeyError):  # it needs more than its networks
        return None


def _size(
    wish: Wish, name: str, takes: Mapping[str, Any], pipeline: Any, denoiser: Mapping[str, Any], latents: LatentFormat
) -> tuple[int, int]:
    if (wish.height is None) != (wish.width is None):
        given, missing = ("height", "width") if wish.height is not None else ("width", "height")
        size = wish.height or wish.width
        raise ShapeError(
            f"{given} {size} is half a size: give the {missing} too, such as {missing} {_near(size, latents)}"
        )
    if wish.height is not None and wish.width is not None:
        return wish.height, wish.width
    for height, width in _usual_sizes(takes, pipeline, denoiser, latents):
        if _number(height) and _number(width):
            return int(height), int(width)
    size = _near(1024, latents)
    raise ShapeError(
        f"{name}: no config says which size it makes by default: give both, such as height {size}, width {size}"
    )


def _usual_sizes(
    takes: Mapping[str, Any], pipeline: Any, denoiser: Mapping[str, Any], latents: LatentFormat
) -> list[tuple[Any, Any]]:
    """Where pipelines say what they make by default, in pixels."""
    sample, sides = getattr(pipeline, "default_sample_size", None), denoiser.get("sample_size")
    in_latents = [
        (sample, sample),
        (denoiser.get("sample_height"), denoiser.get("sample_width")),
        (sides, sides) if isinstance(sides, int) else tuple(sides or (None, None)),
    ]
    return [
        (takes.get("height"), takes.get("width")),
        (takes.get("resolution"), takes.get("resolution")),
        (getattr(pipeline, "default_height", None), getattr(pipeline, "default_width", None)),
        *(
            (height * (latents.spatial // latents.folded), width * (latents.spatial // latents.folded))
            for height, width in in_latents
            if _number(height) and _number(width)
        ),
    ]


def _guided(wish: Wish, takes: Mapping[str, Any], latents: LatentFormat) -> bool:
    if "true_cfg_scale" in takes:
        return wish.negative_prompt is not None and takes["true_cfg_scale"] > 1 and latents.guidance != "none"
    if latents.guidance not in ("batch", "passes"):
        return False
    scale = wish.guidance_scale if wish.guidance_scale is not None else takes.get("guidance_scale")
    return not isinstance(scale, int | float) or scale > 1


def _tokens_of_clip(modules: Mapping[str, torch.nn.Module]) -> int | None:
    """What every text encoder of a pipeline takes, where all of them have learned positions."""
    configs = [getattr(module, "config", None) for name, module in modules.items() if name.startswith("text_encoder")]
    counts = [getattr(config, "max_position_embeddings", None) for config in configs]
    known = [count for count in counts if isinstance(count, int) and count <= 256]
    return max(known) if known and len(known) == len(counts) else None


def _near(size: int | None, latents: LatentFormat) -> int:
    return max(round((size or 0) / latents.multiple), 1) * latents.multiple


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
