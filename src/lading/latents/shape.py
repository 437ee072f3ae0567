"""The shape of a latent and of what it is decoded to, axis by axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from lading.errors import ShapeError
from lading.sizes import dtype_name, tensor_nbytes

AXES = ("batch", "channels", "frames", "height", "width", "bins")
"""Every axis that a latent may have, in the order in which they are written here; families order their tensors. Bins
are those of a spectrogram, in the latent of a sound."""

PLACES = ("frames", "height", "width", "bins")
"""The axes along which a latent is cut into tokens, in the order in which tokens are counted."""


@dataclass(frozen=True)
class TokenLayout:
    """How a latent is cut into tokens.

    Attributes:
        patch: latents to one token along an axis; 1 along those that are not named.
        packed: whether the pipeline holds tokens (batch, tokens, features) rather than latents.
        channels_last: whether a token's features are ordered by place in the patch and then by channel.
        multiple: what the denoiser pads the number of tokens to.
    """

    patch: Mapping[str, int] = field(default_factory=dict)
    packed: bool = False
    channels_last: bool = False
    multiple: int = 1


PLAIN = TokenLayout()
"""Each latent is a token, and the pipeline holds latents."""


@dataclass(frozen=True)
class LatentShape:
    """A latent's sizes by axis, in the order of its tensor.

    Attributes:
        layout: how it is cut into tokens.
        padding: frames, the first ones, that are drawn to fill a token and are not decoded.

    >>> str(LatentShape({"batch": 1, "channels": 16, "frames": 21, "height": 90, "width": 160}))
    'latent  batch 1  channels 16  frames 21  height 90  width 160'
    """

    sizes: Mapping[str, int]
    layout: TokenLayout = PLAIN
    padding: int = 0

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if axis not in AXES:
                raise ShapeError(f"{axis!r} is no axis of a latent: the axes are {', '.join(AXES)}")
            if size < 1:
                raise ShapeError(f"the latent's {axis} is {size}: it must be at least 1")
        for axis, patch in self.layout.patch.items():
            if patch < 1 or self.sizes.get(axis, patch) % patch:
                raise ShapeError(f"the latent's {axis} is {self.sizes[axis]}: tokens of {patch} do not divide it")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes in the order of the tensor."""
        return tuple(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.sizes.values())

    @property
    def patch(self) -> dict[str, int]:
        """Latents to one token, along each axis that has places."""
        return {axis: self.layout.patch.get(axis, 1) for axis in PLACES if axis in self.sizes}

    @property
    def grid(self) -> dict[str, int]:
        """Tokens along each axis that has places."""
        return {axis: self.sizes[axis] // patch for axis, patch in self.patch.items()}

    @property
    def tokens(self) -> int:
        """Tokens of one latent, as many as the denoiser computes.

        >>> sizes = {"batch": 1, "channels": 16, "height": 128, "width": 128}
        >>> LatentShape(sizes, TokenLayout({"height": 2, "width": 2})).tokens
        4096
        """
        tokens = prod(self.grid.values())
        return -(-tokens // self.layout.multiple) * self.layout.multiple

    @property
    def packed(self) -> tuple[int, int, int]:
        """The shape of the latent as tokens: (batch, tokens, features), before the denoiser pads it."""
        return self.sizes["batch"], prod(self.grid.values()), self.sizes["channels"] * prod(self.patch.values())

    @property
    def held(self) -> tuple[int, ...]:
        """The shape of the tensor that the pipeline holds between steps: `packed` or `shape`."""
        return self.packed if self.layout.packed else self.shape

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


@dataclass(frozen=True)
class PixelShape:
    """What a latent is decoded to, in pixels.

    Attributes:
        num_frames: of a film, or layers of a picture; None for a plain picture.

    >>> str(PixelShape(1, 720, 1280, 81))
    'pixels  batch 1  frames 81  height 720  width 1280'
    """

    batch: int
    height: int
    width: int
    num_frames: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by axis."""
        frames = {} if self.num_frames is None else {"frames": self.num_frames}
        return {"batch": self.batch, **frames, "height": self.height, "width": self.width}

    def __str__(self) -> str:
        return "  ".join(["pixels", *(f"{axis} {size}" for axis, size in self.sizes.items())])
