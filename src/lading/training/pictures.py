"""Pictures and films from files to tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from lading.errors import LadingError
from lading.training.buckets import Fit


class BadPictureError(LadingError):
    """A file that is no picture, or a damaged one."""


def measure(file: Path) -> tuple[int, int, int]:
    """Return a picture's height, width and number of frames, from its header.

    Raises:
        BadPictureError: it is none.
    """
    try:
        with Image.open(file) as picture:
            frames = getattr(picture, "n_frames", 1)
            turned = _orientation(picture) >= 5  # those that exchange the sides
            width, height = picture.size
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad(file, error) from None
    return (width, height, frames) if turned else (height, width, frames)


def read_pixels(file: Path, fit: Fit, num_frames: int | None, flipped: bool = False) -> torch.Tensor:
    """Return a picture of (3, height, width), or a film of (3, frames, height, width), in -1..1.

    Args:
        num_frames: the first so many frames; None for a picture, of which the first frame counts.

    Raises:
        BadPictureError: it cannot be decoded, or has fewer frames.
    """
    try:
        with Image.open(file) as picture:
            wanted = num_frames or 1
            frames = []
            for frame in ImageSequence.Iterator(picture):
                frames.append(_fitted(frame, fit))
                if len(frames) == wanted:
                    break
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad(file, error) from None
    if len(frames) < wanted:
        raise BadPictureError(f"{file}: it has {len(frames)} frames of the {wanted} that are asked for: ask for fewer")
    pixels = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1
    pixels = pixels.flip(-1) if flipped else pixels
    return pixels[:, 0] if num_frames is None else pixels


def _fitted(frame: Image.Image, fit: Fit) -> np.ndarray:
    picture = ImageOps.exif_transpose(frame) if _orientation(frame) != 1 else frame
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    height, width = fit.resized
    picture = picture.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    box = (fit.left, fit.top, fit.left + fit.bucket.width, fit.top + fit.bucket.height)
    return np.asarray(picture.crop(box))


def _orientation(picture: Image.Image) -> int:
    """Return what EXIF says, as far as the header has it: Pillow decodes a whole PNG to look behind its pixels."""
    said = picture.format != "PNG" or "exif" in picture.info
    return int(picture.getexif().get(0x0112, 1)) if said else 1


def _bad(file: Path, error: Exception) -> BadPictureError:
    return BadPictureError(f"{file}: it cannot be read as a picture ({error}): replace it, or leave such pictures out")
