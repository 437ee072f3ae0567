"""What a family states of its latents: numbers that hold where no config says otherwise, and where configs say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lading.latents.compression import AutoencoderEntries
from lading.latents.frames import FrameRule

Guidance: TypeAlias = 'Literal["batch", "passes", "embedded", "none"]'
"""How a step is guided away from a negative prompt: in one forward of twice the batch, in two forwards, by a number
that the denoiser takes, or not at all."""


@dataclass(frozen=True)
class AudioNumbers:
    """The sound beside a film, as the latent of a mel spectrogram.

    The rates of the latent are no entries of a config: they are constants of the class.

    Attributes:
        bins: of the spectrogram.
        bins_per_latent: bins of the spectrogram to one of the latent.
        frames_per_latent: frames of the spectrogram to one of the latent.
        sampling_rate: of the sound, per second.
        hop_length: samples of the sound to one frame of the spectrogram.
        denoiser_channels: the entry of the denoiser's config that says what it takes.
    """

    channels: int
    bins: int
    bins_per_latent: int
    frames_per_latent: int
    sampling_rate: int
    hop_length: int
    denoiser_channels: str


@dataclass(frozen=True)
class LatentNumbers:
    """The numbers that lead from pixels to a family's latent.

    Attributes:
        axes: of the latent's tensor as the pipeline draws it, in order.
        channels: of that tensor.
        spatial: pixels to one latent of the autoencoder along height and width.
        temporal: frames to one latent, after the first, or a rule; None for pictures.
        folded: latents of the autoencoder along height and width that are put into the channels of one.
        patch: latents to one token along height and width.
        patch_entry: the entry of the denoiser's config that says the patch; None where the pipeline patches.
        packed: whether the pipeline holds tokens (batch, tokens, features) rather than latents.
        channels_last: whether the features of a token are ordered by place and then by channel.
        token_multiple: what the denoiser pads the number of tokens to.
        channels_entry: the entry of the denoiser's config that says the channels; that of its input where it is empty.
        layers_entry: the entry of the denoiser's config that says that a picture is made in layers, one to a frame.
        guidance: how a step is guided, unless the config says that the denoiser takes it as a number.
        guidance_entries: the entries of the denoiser's config that say so.
        autoencoder: where the autoencoder's config says its part.
        audio: of the sound beside the film.
    """

    axes: tuple[str, ...]
    channels: int
    spatial: int
    temporal: int | FrameRule | None = None
    folded: int = 1
    patch: int = 1
    patch_entry: str | None = "patch_size"
    packed: bool = False
    channels_last: bool = False
    token_multiple: int = 1
    channels_entry: str = "out_channels"
    layers_entry: str | None = None
    guidance: Guidance = "batch"
    guidance_entries: tuple[str, ...] = ("guidance_embeds",)
    autoencoder: AutoencoderEntries = field(default_factory=AutoencoderEntries)
    audio: AudioNumbers | None = None
