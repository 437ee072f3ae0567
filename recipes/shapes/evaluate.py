"""Ask the ``shapes`` model for combinations it has never seen, and let the checker judge the pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from recipes.shapes.check import Sight, look
from recipes.shapes.pictures import Caption, evaluation_captions

BATCH = 20


@dataclass(frozen=True)
class Figures:
    """Shares of the prompts that the checker found right; ``together`` is shape, colour and background at once.

    ``size`` counts only the prompts that name one.
    """

    guidance_scale: float
    steps: int
    prompts: int
    shape: float
    colour: float
    background: float
    size: float
    together: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate(folder: Path, seed: int, guidance_scale: float, steps: int, sheet: Path | None = None) -> Figures:
    """Draw and judge every held-out prompt; prompt number n is drawn from seed n.

    Args:
        sheet: where to save all pictures in one, the wrong ones framed in black.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    captions = evaluation_captions(seed)
    pictures: list[np.ndarray] = []
    for start in range(0, len(captions), BATCH):
        numbers = range(start, min(start + BATCH, len(captions)))
        images = pipeline(
            [str(captions[number]) for number in numbers],
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(number) for number in numbers],
        ).images
        pictures += [np.asarray(image.convert("RGB")) for image in images]
    sights = [look(picture) for picture in pictures]
    right = [_right(caption, sight) for caption, sight in zip(captions, sights, strict=True)]
    for caption, sight, marks in zip(captions, sights, right, strict=True):
        if not all(marks[:3]):
            print(f"wrong: {caption}: {sight}", flush=True)
    if sheet is not None:
        save_sheet(pictures, [all(marks[:3]) for marks in right], sheet)
    shares = np.array([marks[:3] for marks in right], dtype=float).mean(axis=0)
    sized = [marks[3] for caption, marks in zip(captions, right, strict=True) if caption.size is not None]
    together = float(np.mean([all(marks[:3]) for marks in right]))
    shape, colour, background = (float(share) for share in shares)
    return Figures(guidance_scale, steps, len(captions), shape, colour, background, float(np.mean(sized)), together)


def _right(caption: Caption, sight: Sight) -> tuple[bool, bool, bool, bool]:
    """Whether shape, colour, background and size are what the caption says."""
    triple = caption.triple
    return (
        sight.shape == triple.shape,
        sight.colour == triple.colour,
        sight.background == triple.background,
        caption.size in (None, sight.size),
    )


def save_sheet(pictures: list[np.ndarray], right: list[bool], sheet: Path) -> None:
    """Save all pictures in one, the wrong ones framed in black."""
    columns = 20
    framed = [
        np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255 if good else 0)
        for picture, good in zip(pictures, right, strict=True)
    ]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    rows = [np.concatenate(framed[start : start + columns], axis=1) for start in range(0, len(framed), columns)]
    Image.fromarray(np.concatenate(rows)).save(sheet)
