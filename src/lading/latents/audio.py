"""From seconds to the latent of the sound that is made with a film."""

from __future__ import annotations

from dataclasses import dataclass

from lading.errors import ShapeError
from lading.latents.compression import Config
from lading.latents.latent_numbers import AudioNumbers
from lading.latents.shape import LatentShape, TokenLayout


@dataclass(frozen=True)
class AudioFormat:
    """How the latent of a sound follows from the film's length: a mel spectrogram, made small.

    Attributes:
        channels: of the latent.
        bins: of the latent; all of one moment, over all channels, are one token.
        frames_per_second: of the latent.
    """

    channels: int
    bins: int
    frames_per_second: float

    def shape(self, batch: int, num_frames: int, frame_rate: float = 24.0) -> LatentShape:
        """Return the latent of the sound of films.

        Args:
            num_frames: of the film.
            frame_rate: its frames per second.

        Raises:
            ShapeError: the film is too short to have a sound, or its frame rate is not positive.

        >>> import lading
        >>> str(lading.latent_format("Lightricks/LTX-2").audio.shape(batch=1, num_frames=121))
        'latent  batch 1  channels 8  frames 126  bins 16'
        """
        if not frame_rate > 0:
            raise ShapeError(f"frame_rate {frame_rate} is not positive: give the film's frames per second")
        frames = round(num_frames / frame_rate * self.frames_per_second)
        if frames < 1:
            raise ShapeError(
                f"a film of {num_frames} frames at {frame_rate} per second is too short for a sound: "
                "use more frames or a lower frame_rate"
            )
        sizes = {"batch": batch, "channels": self.channels, "frames": frames, "bins": self.bins}
        return LatentShape(sizes, TokenLayout({"bins": self.bins}, packed=True))

    def seconds(self, shape: LatentShape) -> float:
        """Return how long a latent sounds."""
        return shape.sizes["frames"] / self.frames_per_second


def audio_format(numbers: AudioNumbers, denoiser: Config, autoencoder: Config) -> AudioFormat:
    """Return the format of the sound's latents, from configs where they say it.

    Raises:
        ShapeError: the channels of the denoiser and of the autoencoder disagree.
    """
    channels = autoencoder.get("latent_channels") or numbers.channels
    bins = (autoencoder.get("mel_bins") or numbers.bins) // numbers.bins_per_latent
    rate = autoencoder.get("sample_rate") or numbers.sampling_rate
    hop = autoencoder.get("mel_hop_length") or numbers.hop_length
    taken = denoiser.get(numbers.denoiser_channels)
    if taken is not None and taken != channels * bins:
        raise ShapeError(
            f"the denoiser takes {taken} channels of sound, and its autoencoder decodes {channels} of {bins} bins: "
            "they are of different models; take both from one"
        )
    return AudioFormat(channels, bins, rate / hop / numbers.frames_per_latent)
