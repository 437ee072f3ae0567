"""From a picture to the condition of a ControlNet: encoded by the pipeline's autoencoder and packed to tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

_BLACK = -1.0
_PATCH = 2
"""Latents to one token along height and width."""


@torch.no_grad()
def condition_tokens(
    pipeline: Any,
    picture: Image.Image,
    mask: Image.Image | None = None,
    height: int | None = None,
    width: int | None = None,
) -> torch.Tensor:
    """Encode a picture, such as edges or depths, as the condition of a blockwise ControlNet.

    Args:
        pipeline: a Qwen-Image pipeline of diffusers; its autoencoder encodes.
        picture: for a ControlNet for inpainting: what is to be repainted in part.
        mask: white where the picture is to be painted anew: the ControlNet sees it black there, and the mask, 1 where
            the picture is kept, as further channels. Of the picture's proportions.
        height: of what the pipeline will draw, in pixels; None: the picture's, down to a multiple of 16.
        width: as `height`.

    Returns:
        (1, tokens, 64), or with a mask (1, tokens, 68), on the pipeline's device in the autoencoder's dtype.
    """
    vae = pipeline.vae
    pixels: torch.Tensor = pipeline.image_processor.preprocess(picture.convert("RGB"), height, width)
    repainted = None if mask is None else _whiteness(mask, pixels.shape[2], pixels.shape[3])
    if repainted is not None:
        pixels = pixels.masked_fill(repainted > 0.5, _BLACK)
    frame = pixels.unsqueeze(2).to(pipeline._execution_device, vae.dtype)
    latent: torch.Tensor = vae.encode(frame).latent_dist.mode()
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latent)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latent = ((latent - mean) / deviation).squeeze(2)
    if repainted is not None:
        kept = 1 - torch.nn.functional.interpolate(repainted, size=latent.shape[2:])
        latent = torch.cat([latent, kept.to(latent)], dim=1)
    return _pack(latent)


def _whiteness(mask: Image.Image, height: int, width: int) -> torch.Tensor:
    """A mask at a picture's size, (1, 1, height, width): 1 is white, 0 black."""
    grey = np.asarray(mask.convert("L").resize((width, height)), dtype=np.float32)
    return torch.from_numpy(grey / 255)[None, None]


def _pack(latent: torch.Tensor) -> torch.Tensor:
    """Make a token of each patch: (batch, channels, height, width) to (batch, tokens, channels * patch * patch)."""
    batch, channels, height, width = latent.shape
    patches = latent.reshape(batch, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
