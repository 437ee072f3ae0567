"""How many frames of a film make how many frames of its latent."""

from __future__ import annotations

from dataclasses import dataclass

from lading.errors import ShapeError


@dataclass(frozen=True)
class FrameRule:
    """Films of `period * n + first` frames have latents of `latents * n + first_latents` frames, n from 0.

    >>> rule = FrameRule(4)
    >>> str(rule), rule.latent_frames(81), rule.pixel_frames(21), rule.nearest(80)
    ('4n+1', 21, 81, (77, 81))
    """

    period: int
    first: int = 1
    latents: int = 1
    first_latents: int = 1

    def allows(self, num_frames: int) -> bool:
        """Tell whether a film may have so many frames."""
        return num_frames >= self.first and (num_frames - self.first) % self.period == 0

    def nearest(self, num_frames: int) -> tuple[int, ...]:
        """Return the numbers of frames that are allowed, below and above one that is not."""
        below = self.first + (num_frames - self.first) // self.period * self.period
        return tuple(number for number in (below, below + self.period) if number >= self.first) or (self.first,)

    def latent_frames(self, num_frames: int) -> int:
        """Return the frames of the latent.

        Raises:
            ShapeError: the film may not have so many frames.
        """
        if not self.allows(num_frames):
            nearest = " or ".join(map(str, self.nearest(num_frames)))
            raise ShapeError(f"num_frames {num_frames} is not {self}: use {nearest}")
        return (num_frames - self.first) // self.period * self.latents + self.first_latents

    def pixel_frames(self, latent_frames: int) -> int:
        """Return the frames of the film.

        Raises:
            ShapeError: no film has such a latent.
        """
        periods, rest = divmod(latent_frames - self.first_latents, self.latents)
        if periods < 0 or rest:
            raise ShapeError(
                f"a latent of {latent_frames} frames belongs to no film of {self} frames: "
                f"use one of {_linear(self.latents, self.first_latents)}"
            )
        return periods * self.period + self.first

    def __str__(self) -> str:
        return _linear(self.period, self.first)


def _linear(factor: int, constant: int) -> str:
    return f"{'' if factor == 1 else factor}n+{constant}"
