"""From pixels to the latent of one model, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lading.errors import ShapeError
from lading.latents.audio import AudioFormat, audio_format
from lading.latents.compression import Config
from lading.latents.frames import FrameRule
from lading.latents.latent_numbers import Guidance, LatentNumbers
from lading.latents.shape import PLAIN, LatentShape, PixelShape, TokenLayout


@dataclass(frozen=True)
class LatentFormat:
    """How a model's latents follow from pixels.

    Attributes:
        axes: of the latent's tensor, in order.
        channels: of the latent.
        spatial: pixels to one latent along height and width.
        multiple: what height and width in pixels must be multiples of.
        frames: which numbers of frames a film may have; None for pictures.
        folded: latents of the autoencoder, along height and width, in the channels of one.
        layout: how the latent is cut into tokens.
        guidance: how a step is guided away from a negative prompt.
        audio: of the sound that is made with a film.

    >>> import lading
    >>> str(lading.latent_format("Wan-AI/Wan2.1-T2V-14B").shape(batch=1, height=720, width=1280, num_frames=81))
    'latent  batch 1  channels 16  frames 21  height 90  width 160'
    """

    axes: tuple[str, ...]
    channels: int
    spatial: int
    frames: FrameRule | None = None
    folded: int = 1
    layout: TokenLayout = PLAIN
    guidance: Guidance = "batch"
    audio: AudioFormat | None = None

    @property
    def multiple(self) -> int:
        """What height and width in pixels must be multiples of: a token must be whole."""
        return self.spatial * self.layout.patch.get("height", 1)

    def shape(self, batch: int, height: int, width: int, num_frames: int | None = None) -> LatentShape:
        """Return the latent of pictures or films.

        Args:
            batch: how many are made at once.
            height: in pixels.
            width: in pixels.
            num_frames: of a film, or layers of a picture with the whole one before them; None for a plain picture.

        Raises:
            ShapeError: the model cannot make this size; the message names the nearest that it can.
        """
        problems = [] if batch >= 1 else [f"batch {batch} is too small: use 1 or more"]
        for axis, size in (("height", height), ("width", width)):
            if size < 1 or size % self.multiple:
                below = max(size // self.multiple, 0) * self.multiple
                sizes = " or ".join(str(near) for near in (below, below + self.multiple) if near)
                problems.append(f"{axis} {size} is no multiple of {self.multiple}: use {sizes}")
        latent_frames, problem = self._latent_frames(num_frames)
        problems += [problem] if problem else []
        if problems:
            raise ShapeError("; ".join(problems))
        padding = -latent_frames % self.layout.patch.get("frames", 1)
        sizes_by_axis = {
            "batch": batch,
            "channels": self.channels,
            "frames": latent_frames + padding,
            "height": height // self.spatial,
            "width": width // self.spatial,
        }
        return LatentShape({axis: sizes_by_axis[axis] for axis in self.axes}, self.layout, padding)

    def pixels(self, shape: LatentShape) -> PixelShape:
        """Return the size in pixels of what a latent is decoded to: the inverse of `shape`.

        Raises:
            ShapeError: it is no latent of this model.
        """
        if shape.axes != self.axes or shape.sizes["channels"] != self.channels:
            raise ShapeError(
                f"{shape}: the model's latents have {self.channels} channels and the axes {', '.join(self.axes)}: "
                "make the shape with this format's shape()"
            )
        sizes = shape.sizes
        frames = None if self.frames is None else self.frames.pixel_frames(sizes["frames"] - shape.padding)
        return PixelShape(sizes["batch"], sizes["height"] * self.spatial, sizes["width"] * self.spatial, frames)

    def guided(self, shape: LatentShape) -> LatentShape:
        """Return the latent that the denoiser sees in one forward of a guided step: of twice the batch, for some."""
        if self.guidance != "batch":
            return shape
        return replace(shape, sizes={**shape.sizes, "batch": 2 * shape.sizes["batch"]})

    @property
    def forwards(self) -> int:
        """Forwards of the denoiser in one guided step."""
        return 2 if self.guidance == "passes" else 1

    def _latent_frames(self, num_frames: int | None) -> tuple[int, str]:
        """The frames of the latent, and what is wrong with the number of frames."""
        if self.frames is None:
            if num_frames in (None, 1):
                return 1, ""
            return 1, f"num_frames {num_frames} is for films, and the model makes pictures: leave it out"
        if num_frames is None:
            return 1, f"num_frames is missing: the model makes films of {self.frames} frames: give such a number"
        try:
            return self.frames.latent_frames(num_frames), ""
        except ShapeError as error:
            return 1, str(error)

    def __str__(self) -> str:
        patch = " x ".join(str(number) for number in self.layout.patch.values()) or "1"
        parts = [
            f"channels {self.channels}",
            *([] if self.frames is None else [f"frames {self.frames}"]),
            f"height, width / {self.spatial} in multiples of {self.multiple}",
            f"tokens of {patch}{', packed' if self.layout.packed else ''}",
            f"guidance {self.guidance}",
        ]
        return "  ".join(["latents", *parts])


def make_latent_format(
    numbers: LatentNumbers,
    denoiser: Config,
    autoencoder: Config | None = None,
    audio_autoencoder: Config | None = None,
) -> LatentFormat:
    """Return the latent format of a denoiser and its autoencoder.

    What the configs say holds; what they leave out is as the family states it.

    Args:
        numbers: of the family.
        denoiser: its config.
        autoencoder: its config; None where it is not there.
        audio_autoencoder: the config of that of the sound.

    Raises:
        ShapeError: the channels of the denoiser and of the autoencoder disagree.
    """
    entries, config = numbers.autoencoder, autoencoder or {}
    spatial = entries.spatial(config) or numbers.spatial
    patch = _patch(numbers, denoiser)
    layout = TokenLayout(patch, numbers.packed, numbers.channels_last, numbers.token_multiple)
    embedded = any(denoiser.get(name) for name in numbers.guidance_entries)
    return LatentFormat(
        numbers.axes,
        _channels(numbers, denoiser, entries.channels(config)),
        spatial * numbers.folded,
        _frames(numbers, denoiser, config),
        numbers.folded,
        layout,
        "embedded" if embedded else numbers.guidance,
        None if numbers.audio is None else audio_format(numbers.audio, denoiser, audio_autoencoder or {}),
    )


def _patch(numbers: LatentNumbers, denoiser: Config) -> dict[str, int]:
    """Latents to a token by axis. Configs say one number, (frames, height, width), or a list of choices."""
    said = denoiser.get(numbers.patch_entry) if numbers.patch_entry is not None else None
    if isinstance(said, int | None):
        spatial, frames = said or numbers.patch, denoiser.get("patch_size_t") or 1
    else:
        spatial, frames = said[-1], said[0] if len(said) == 3 else 1
    patch = {"frames": frames, "height": spatial, "width": spatial}
    return {axis: size for axis, size in patch.items() if axis in numbers.axes}


def _channels(numbers: LatentNumbers, denoiser: Config, decoded: int | None) -> int:
    """The channels of the latent: those that the autoencoder decodes, in the form in which the denoiser makes them."""
    in_channels = denoiser.get("in_channels")
    made = denoiser.get(numbers.channels_entry) or in_channels
    patched = numbers.patch**2 if numbers.patch_entry is None else 1  # the pipeline's patches are in the channels
    if decoded is None:
        return numbers.channels if made is None else made // patched
    drawn = decoded * numbers.folded**2
    if made is not None and drawn * patched not in (made, in_channels):
        form = f", {drawn * patched} to a token" if drawn * patched != decoded else ""
        raise ShapeError(
            f"the denoiser makes {made} channels, and the autoencoder decodes {decoded}{form}: they are of different "
            "models; take both from one"
        )
    return drawn


def _frames(numbers: LatentNumbers, denoiser: Config, autoencoder: Config) -> FrameRule | None:
    if numbers.layers_entry is not None:
        return FrameRule(1) if denoiser.get(numbers.layers_entry) else None
    stated = FrameRule(numbers.temporal) if isinstance(numbers.temporal, int) else numbers.temporal
    return numbers.autoencoder.frames(autoencoder) or stated
