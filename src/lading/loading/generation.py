"""From a loaded pipeline and a prompt to a picture, or a film, on disk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.errors import ComponentError, LadingError
from lading.latents import LatentShape
from lading.loading.configs import read_config
from lading.loading.latents import latent_format
from lading.writing import require_folder, whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from lading.loading.lora import LoadedLora

ANIMATED = (".gif", ".png", ".webp")
FRAME_MILLISECONDS = 1000 // 16


@dataclass(frozen=True)
class Request:
    """What to draw. None leaves a choice to the pipeline's own default.

    Attributes:
        seed: of the noise; the same seed gives the same picture, bit for bit.
        height: in pixels.
        width: in pixels.
        num_frames: of a film; only pipelines for films take it.
    """

    prompt: str
    seed: int = 0
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

    def asked(self) -> dict[str, Any]:
        """What is left to no default, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def latent_of(folder: Path, request: Request) -> LatentShape | None:
    """Return the latent's shape, from configs alone; None where the catalog or the size asked for does not tell it.

    Raises:
        ShapeError: the model cannot make this size.
    """
    try:
        latents = latent_format(folder)
    except ComponentError:
        return None
    default = _default_size(folder, latents.spatial)
    height, width = request.height or default, request.width or default
    if height is None or width is None or (latents.frames is not None and request.num_frames is None):
        return None
    return latents.shape(1, height, width, request.num_frames)


def _default_size(folder: Path, spatial: int) -> int | None:
    """The size that a UNet's pipeline chooses, in pixels."""
    unet = folder / "unet" / "config.json"
    size = read_config(unet).get("sample_size") if unet.is_file() else None
    return size * spatial if isinstance(size, int) else None


def parse_lora(text: str) -> tuple[Path, float]:
    """Return the file and the scale of "FILE" or "FILE:SCALE"; the scale is 1 by default.

    Raises:
        LadingError: there is no such file.

    >>> parse_lora(f"{__file__}:0.5")[1]
    0.5
    """
    path, _, number = text.rpartition(":")
    try:
        file, scale = (Path(path), float(number)) if path else (Path(text), 1.0)
    except ValueError:
        file, scale = Path(text), 1.0
    if not file.exists():
        raise LadingError(f"{file}: there is no such file: name a LoRA, and its scale after a colon if it is not 1")
    return file, scale


def add_loras(pipeline: Any, loras: Sequence[tuple[Path, float]]) -> list[LoadedLora]:
    """Add LoRAs to a pipeline, each with its scale.

    Raises:
        ComponentError: a file is none for it.
    """
    if not loras:
        return []
    from lading.loading.lora import load_lora  # PEFT, which few pictures need

    return [load_lora(pipeline, file, scale) for file, scale in loras]


def draw(pipeline: Any, request: Request, on_step: Callable[[int, int], None] | None = None) -> Sequence[Image]:
    """Run a pipeline and return the frames that it draws: one for a picture.

    Args:
        on_step: called after each denoising step with its number, from 1, and the number of all steps.

    Raises:
        ComponentError: the pipeline does not take what is asked, or draws no pictures.
    """
    import torch

    takes = inspect.signature(pipeline.__call__).parameters
    asked = {name: value for name, value in request.asked().items() if name != "seed"}
    strange = [name for name in asked if name not in takes]
    if strange:
        raise ComponentError(f"{type(pipeline).__name__} takes no {', '.join(strange)}: leave it out")
    if on_step is not None and "callback_on_step_end" in takes:

        def report(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, len(pipeline.scheduler.timesteps))
            return tensors

        asked["callback_on_step_end"] = report
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(**asked, generator=torch.Generator().manual_seed(request.seed), output_type="pil")
    if hasattr(output, "images"):
        return [output.images[0]]
    if hasattr(output, "frames"):
        return list(output.frames[0])
    raise ComponentError(f"{type(pipeline).__name__} gives {', '.join(output)}, no pictures: call it from Python")


def check_output(out: Path) -> None:
    """Refuse, before any work is done, a file that could not be written in the end.

    Raises:
        LadingError: no such folder, or no such format.
    """
    from PIL import Image

    require_folder(out, "picture.png")
    Image.init()
    if out.suffix.lower() not in Image.EXTENSION or Image.EXTENSION[out.suffix.lower()] not in Image.SAVE:
        raise LadingError(f"{out}: pictures cannot be saved as {out.suffix or 'a file without suffix'!r}: use .png")


def save_frames(frames: Sequence[Image], out: Path) -> None:
    """Write one frame as a picture, several as an animation; the file appears whole or not at all.

    Raises:
        LadingError: the format holds one picture and there are several.
    """
    if len(frames) > 1 and out.suffix.lower() not in ANIMATED:
        raise LadingError(
            f"{out}: {out.suffix} holds no animation of {len(frames)} frames: use {' or '.join(ANIMATED)}"
        )
    with whole_file(out) as part:
        if len(frames) > 1:
            frames[0].save(part, save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0)
        else:
            frames[0].save(part)
