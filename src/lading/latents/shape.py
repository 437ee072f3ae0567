"""The shape of a latent, axis by axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lading.errors import ShapeError
from lading.sizes import dtype_name, tensor_nbytes

AXES = ("batch", "channels", "frames", "height", "width")
"""Every axis that a latent may have, in the order in which they are written here; families order their tensors."""


@dataclass(frozen=True)
class LatentShape:
    """A latent's sizes by axis, in the order of its tensor.

    >>> str(LatentShape({"batch": 1, "channels": 16, "frames": 21, "height": 90, "width": 160}))
    'latent  batch 1  channels 16  frames 21  height 90  width 160'
    """

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if axis not in AXES:
                raise ShapeError(f"{axis!r} is no axis of a latent: the axes are {', '.join(AXES)}")
            if size < 1:
                raise ShapeError(f"the latent's {axis} is {size}: it must be at least 1")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes in the order of the tensor."""
        return tuple(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.sizes.values())

    def nbytes(self, dtype: str) -> int:
        """Bytes of such a latent in a dtype.

        >>> LatentShape({"batch": 1, "channels": 4, "height": 64, "width": 64}).nbytes("float16")
        32768
        """
        return tensor_nbytes(dtype_name(dtype), self.shape)

    def __len__(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return "  ".join(["latent", *(f"{axis} {size}" for axis, size in self.sizes.items())])


def latent_shape_of(
    denoiser_config: Mapping[str, Any], vae_config: Mapping[str, Any], batch: int, height: int, width: int
) -> LatentShape:
    """Return the latent of a picture for a UNet on an `AutoencoderKL`, from their configs.

    The autoencoder halves height and width between its blocks: by `2 ** (len(block_out_channels) - 1)` in all
    (diffusers/models/autoencoders/autoencoder_kl.py).

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Raises:
        ShapeError: the autoencoder cannot divide the height or the width evenly.

    >>> str(latent_shape_of({"in_channels": 4}, {"block_out_channels": [128, 256, 512, 512]}, 1, 512, 768))
    'latent  batch 1  channels 4  height 64  width 96'
    """
    factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    for axis, size in (("height", height), ("width", width)):
        if size < 1 or size % factor:
            below = max(size // factor, 1) * factor
            raise ShapeError(
                f"{axis} {size} is no multiple of {factor}, the factor of the autoencoder: "
                f"use {below} or {below + factor}"
            )
    sizes = {
        "batch": batch,
        "channels": denoiser_config["in_channels"],
        "height": height // factor,
        "width": width // factor,
    }
    return LatentShape(sizes)
