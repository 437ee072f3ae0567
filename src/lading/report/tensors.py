"""Tensors on their way from one part to the next: found in arguments and outputs, and their axes named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lading.latents import LatentFormat
from lading.report.run import Passed

_DEEPEST = 4
_LATENTS = ("sample", "hidden_states", "x", "latents", "noise")
_PIXELS = ("image", "video")
_AUTOENCODERS = ("vae", "video_vae")

PIPELINE = "pipeline"
"""What the pipeline's own methods go by, among its parts."""


def passed(name: str, value: Any) -> tuple[Passed, ...]:
    """Describe the tensors and pictures in a value; lists of tensors alike count as one."""
    found: list[Passed] = []
    for one in _walk(name, value, 0):
        last = found[-1] if found else None
        if last is not None and _list_of(last.name) == _list_of(one.name) != one.name and _alike(last, one):
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(one)
    return tuple(replace(one, name=_list_of(one.name)) if one.count > 1 else one for one in found)


def is_denoiser(part: str) -> bool:
    """Whether a component of this name draws the latent.

    >>> is_denoiser("transformer_2"), is_denoiser("text_encoder")
    (True, False)
    """
    return part.split("_")[0] in ("unet", "transformer")


def named_axes(part: str, tensor: Passed, latents: LatentFormat | None) -> Passed:
    """Give a tensor the names of its axes, as far as its part and its own name tell them.

    Args:
        part: whose argument or output it is; "pipeline" for the latents that the pipeline draws.
        latents: of the model, where they are known.
    """
    axes = _axes(part, tensor, latents)
    return replace(tensor, axes=axes) if len(axes) == len(tensor.shape) else tensor


def _axes(part: str, tensor: Passed, latents: LatentFormat | None) -> tuple[str, ...]:
    rank, name = len(tensor.shape), tensor.name
    if part == "audio_vae":
        return ("batch", "channels", "frames", "bins")
    if part.startswith(("text_encoder", "image_encoder")):
        whole = "int" in tensor.dtype or tensor.dtype == "bool"
        return {2: ("batch", "tokens" if whole else "features"), 3: ("batch", "tokens", "features")}.get(rank, ())
    if part in _AUTOENCODERS or (part == PIPELINE and name in _PIXELS):
        return {4: ("batch", "channels", "height", "width"), 5: ("batch", "channels", "frames", "height", "width")}.get(
            rank, ()
        )
    if part == PIPELINE or is_denoiser(part):
        return _denoising_axes(name, rank, latents)
    return ()


def _denoising_axes(name: str, rank: int, latents: LatentFormat | None) -> tuple[str, ...]:
    """The axes of what goes into a denoiser, and of what comes out: a list holds latents without batch."""
    plain = name.partition("[")[0]
    if plain in _LATENTS or plain == "output":
        if latents is None:
            return ()
        if rank == 3 and latents.layout.packed:
            return ("batch", "tokens", "features")
        if plain != name and rank == 4:
            return ("channels", "frames", "height", "width")
        return latents.axes
    if "mask" in plain:
        return ("batch", "tokens")
    if plain in ("img_ids", "txt_ids") and rank == 2:
        return ("tokens", "places")
    if plain == "cap_feats":
        return ("tokens", "features")
    return {1: ("batch",), 2: ("batch", "features"), 3: ("batch", "tokens", "features")}.get(rank, ())


def _walk(name: str, value: Any, depth: int) -> Iterator[Passed]:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        yield Passed(name, tuple(value.shape), dtype, str(value.device), value.nbytes)
    elif depth >= _DEEPEST:
        return
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(f"{name}.{key}" if depth else str(key), inner, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for number, inner in enumerate(value):
            yield from _walk(f"{name}[{number}]" if len(value) > 1 else name, inner, depth + 1)
    elif isinstance(getattr(value, "parameters", None), torch.Tensor):  # a distribution of latents
        yield from _walk(name, value.parameters, depth + 1)
    else:
        yield from _picture(name, value)


def _picture(name: str, value: Any) -> Iterator[Passed]:
    """A picture of PIL, or an array of numpy; neither library is needed for it."""
    if hasattr(value, "getbands") and hasattr(value, "size"):
        width, height = value.size
        bands = len(value.getbands())
        yield Passed(name, (height, width, bands), "uint8", "cpu", height * width * bands, ("height", "width", "bands"))
    elif hasattr(value, "__array_interface__"):
        yield Passed(name, tuple(value.shape), str(value.dtype), "cpu", value.nbytes)


def _list_of(name: str) -> str:
    return name.rpartition("[")[0] if name.endswith("]") else name


def _alike(one: Passed, other: Passed) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
