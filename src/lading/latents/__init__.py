"""Shapes with named axes: pixels <-> latents <-> tokens. Plain Python; only `pack` and its kin are given tensors.

The numbers come from the families of `lading.catalog` and from configs; `lading.latent_format` brings them together.
"""

from lading.latents.audio import AudioFormat
from lading.latents.format import LatentFormat, make_latent_format
from lading.latents.frames import FrameRule
from lading.latents.latent_numbers import AudioNumbers, Guidance, LatentNumbers
from lading.latents.packing import fold, pack, unfold, unpack
from lading.latents.shape import AXES, LatentShape, PixelShape, TokenLayout

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
