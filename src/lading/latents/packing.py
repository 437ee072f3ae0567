"""Latents to tokens and back, as the pipelines and denoisers cut them. Tensors are only viewed and reordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

from lading.errors import ShapeError
from lading.latents.shape import PLACES, LatentShape

if TYPE_CHECKING:
    from torch import Tensor

Latents: TypeAlias = 'Annotated[Tensor, "the axes of the shape, in its order"]'
Tokens: TypeAlias = 'Annotated[Tensor, "batch tokens features"]'
Picture: TypeAlias = 'Annotated[Tensor, "batch channels height width"]'
Folded: TypeAlias = 'Annotated[Tensor, "batch channels*factor*factor height/factor width/factor"]'


def pack(latents: Latents, shape: LatentShape) -> Tokens:
    """Cut latents into tokens, in the order of frames, height, width.

    Raises:
        ShapeError: the tensor has another shape.
    """
    _check(latents, shape.shape, "latents")
    split, order = _cut(shape)
    return latents.reshape(split).permute(order).reshape(shape.packed)


def unpack(tokens: Tokens, shape: LatentShape) -> Latents:
    """Put tokens together to latents: the inverse of `pack`.

    Raises:
        ShapeError: the tensor has another shape.
    """
    _check(tokens, shape.packed, "tokens")
    split, order = _cut(shape)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tokens.reshape([split[axis] for axis in order]).permute(inverse).reshape(shape.shape)


def fold(latents: Picture, factor: int) -> Folded:
    """Put squares of `factor` by `factor` latents into the channels of one, as FLUX.2 does before noise is added.

    Raises:
        ShapeError: they do not divide height and width.
    """
    batch, channels, height, width = latents.shape
    if height % factor or width % factor:
        raise ShapeError(f"latents of {height} x {width} do not fold by {factor}: use multiples of {factor}")
    split = latents.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // factor, width // factor)


def unfold(latents: Folded, factor: int) -> Picture:
    """Give the channels of folded latents their places back: the inverse of `fold`.

    Raises:
        ShapeError: the channels are no whole squares.
    """
    batch, channels, height, width = latents.shape
    if channels % factor**2:
        raise ShapeError(f"{channels} channels do not unfold by {factor}: use a multiple of {factor**2}")
    split = latents.reshape(batch, -1, factor, factor, height, width)
    return split.permute(0, 1, 4, 2, 5, 3).reshape(batch, -1, height * factor, width * factor)


def _cut(shape: LatentShape) -> tuple[list[int], list[int]]:
    """The sizes of the latents' axes, those with places cut into tokens and patch; and where each axis of
    (batch, grid, features) stands among them."""
    split: list[int] = []
    position: dict[str, int] = {}
    for axis, size in shape.sizes.items():
        position[axis] = len(split)
        split += [shape.grid[axis], shape.patch[axis]] if axis in PLACES else [size]
    places = [position[axis] for axis in PLACES if axis in shape.sizes]
    patch = [place + 1 for place in places]
    features = [*patch, position["channels"]] if shape.layout.channels_last else [position["channels"], *patch]
    return split, [position["batch"], *places, *features]


def _check(tensor: Tensor, expected: Sequence[int], what: str) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ShapeError(f"{what} of shape {tuple(tensor.shape)}: the shape says {tuple(expected)}: make both alike")
