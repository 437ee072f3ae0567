"""What an autoencoder's config says of its latent. Each family names the entries that its class has.

A reading is a function from a config to a number; where the config leaves an entry out it returns None, and the class's
own default holds, which is the number that the family states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from lading.latents.frames import FrameRule

Config: TypeAlias = "Mapping[str, Any]"
Reading: TypeAlias = "Callable[[Config], int | None]"


def entry(name: str) -> Reading:
    """Read a whole number as it stands; some configs write it with a point.

    >>> entry("z_dim")({"z_dim": 16}), entry("z_dim")({})
    (16, None)
    """
    return lambda config: None if config.get(name) is None else int(config[name])


def levels(name: str) -> Reading:
    """Read a list of levels between which the picture is halved: 2 to the power of one less than there are.

    >>> levels("block_out_channels")({"block_out_channels": [128, 256, 512, 512]})
    8
    """
    return lambda config: 2 ** (len(config[name]) - 1) if config.get(name) else None


def halvings(name: str) -> Reading:
    """Read a list with an entry for each time that the picture is halved.

    >>> halvings("temperal_downsample")({"temperal_downsample": [False, True, True]})
    8
    """
    return lambda config: 2 ** len(config[name]) if config.get(name) else None


def product(name: str) -> Reading:
    """Read a list of factors.

    >>> product("temporal_expansions")({"temporal_expansions": [1, 2, 3]})
    6
    """
    return lambda config: prod(config[name]) if config.get(name) else None


def halved_patches(patch: str, usual: int, halved: str) -> Reading:
    """Read the size of a patch, the usual one where it is left out, and a list that says which levels halve it.

    >>> halved_patches("patch_size", 4, "scaling")({"scaling": [True, True, True, False]})
    32
    """
    return lambda config: config.get(patch, usual) * 2 ** sum(config[halved]) if config.get(halved) else None


def first_of(*readings: Reading) -> Reading:
    """Take what the first reading finds that finds anything."""
    return lambda config: next((value for value in (read(config) for read in readings) if value is not None), None)


def every(read: Reading, first_latents: int = 1) -> Callable[[Config], FrameRule | None]:
    """Read how many frames, after the first, make one of the latent.

    Args:
        first_latents: frames of the latent that a film of one frame has.

    >>> str(every(entry("scale_factor_temporal"))({"scale_factor_temporal": 4}))
    '4n+1'
    """

    def rule(config: Config) -> FrameRule | None:
        period = read(config)
        return None if period is None else FrameRule(period, first_latents=first_latents)

    return rule


def _no_frames(_config: Config) -> None:
    return None


_BLOCKS = levels("block_out_channels")
_CHANNELS = entry("latent_channels")


@dataclass(frozen=True)
class AutoencoderEntries:
    """Where the config of an autoencoder says what its latent is like.

    Attributes:
        spatial: pixels to one latent along height and width.
        frames: the rule of frames, for films.
        channels: of the latent.
    """

    spatial: Reading = _BLOCKS
    frames: Callable[[Config], FrameRule | None] = _no_frames
    channels: Reading = _CHANNELS
