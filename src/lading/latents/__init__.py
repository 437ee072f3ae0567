"""Shapes with named axes: pixels <-> latents <-> tokens. Plain Python; only `pack` and its kin are given tensors.

The numbers come from the families of `lading.catalog` and from configs; `lading.latent_format` brings them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.latents.audio import AudioFormat
    from lading.latents.format import LatentFormat, make_latent_format
    from lading.latents.frames import FrameRule
    from lading.latents.latent_numbers import AudioNumbers, Guidance, LatentNumbers
    from lading.latents.packing import fold, pack, unfold, unpack
    from lading.latents.shape import AXES, LatentShape, PixelShape, TokenLayout

_HOMES = {
    "lading.latents.audio": ("AudioFormat",),
    "lading.latents.format": (
        "LatentFormat",
        "make_latent_format",
    ),
    "lading.latents.frames": ("FrameRule",),
    "lading.latents.latent_numbers": (
        "AudioNumbers",
        "Guidance",
        "LatentNumbers",
    ),
    "lading.latents.packing": (
        "fold",
        "pack",
        "unfold",
        "unpack",
    ),
    "lading.latents.shape": (
        "AXES",
        "LatentShape",
        "PixelShape",
        "TokenLayout",
    ),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = [
    "AXES",
    "AudioFormat",
    "AudioNumbers",
    "FrameRule",
    "Guidance",
    "LatentFormat",
    "LatentNumbers",
    "LatentShape",
    "PixelShape",
    "TokenLayout",
    "fold",
    "make_latent_format",
    "pack",
    "unfold",
    "unpack",
]
