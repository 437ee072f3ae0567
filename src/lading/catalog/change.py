"""What a key map does to tensors on their way from a file to a network: bijections, told for shapes and for tensors.

Each change knows its inverse. Shapes are tuples and need no torch; tensors are torch's and only views are made of them,
except where several become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = "tuple[int, ...]"


class UnfitShapeError(ValueError):
    """A tensor has a shape that a change cannot take; the message says which and why."""


class Change(Protocol):
    """Some tensors made of others, without loss."""

    @property
    def inverse(self) -> Change:
        """The change that undoes this one."""

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Return the results' shapes.

        Raises:
            UnfitShapeError: these shapes cannot be changed so.
        """

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the results; views where one tensor stays one or is split."""


@dataclass(frozen=True)
class Same:
    """Nothing changes but the name."""

    @property
    def inverse(self) -> Same:
        return self

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        return tuple(shapes)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(tensors)


@dataclass(frozen=True)
class Chain:
    """One change after the other."""

    changes: tuple[Change, ...]

    @property
    def inverse(self) -> Chain:
        return Chain(tuple(change.inverse for change in reversed(self.changes)))

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        for change in self.changes:
            shapes = change.shapes(shapes)
        return tuple(shapes)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for change in self.changes:
            tensors = change.tensors(tensors)
        return tuple(tensors)


@dataclass(frozen=True)
class Split:
    """One tensor becomes several along an axis, in proportion to `parts`; queries, keys and values mostly."""

    parts: tuple[int, ...]
    dim: int = 0

    @property
    def inverse(self) -> Fuse:
        return Fuse(self.parts, self.dim)

    def sizes(self, size: int) -> tuple[int, ...]:
        """How an axis of this size is divided."""
        unit, rest = divmod(size, sum(self.parts))
        if rest or not unit:
            raise UnfitShapeError(f"axis {self.dim} of size {size} does not divide into parts of {self.parts}")
        return tuple(part * unit for part in self.parts)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if self.dim >= len(shape):
            raise UnfitShapeError(f"shape {shape} has no axis {self.dim} to split")
        return tuple((*shape[: self.dim], size, *shape[self.dim + 1 :]) for size in self.sizes(shape[self.dim]))

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        starts = accumulate(self.sizes(tensor.shape[self.dim]), initial=0)
        return tuple(tensor.narrow(self.dim, start, end - start) for start, end in pairwise(starts))


@dataclass(frozen=True)
class Fuse:
    """Several tensors, sized as `parts`, become one along an axis."""

    parts: tuple[int, ...]
    dim: int = 0

    @property
    def inverse(self) -> Split:
        return Split(self.parts, self.dim)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        if any(self.dim >= len(shape) for shape in shapes):
            raise UnfitShapeError(f"shapes {tuple(shapes)} have no axis {self.dim} to fuse along")
        total = sum(shape[self.dim] for shape in shapes)
        first = shapes[0]
        fused = (*first[: self.dim], total, *first[self.dim + 1 :])
        if self.inverse.shapes([fused]) != tuple(shapes):
            raise UnfitShapeError(f"shapes {tuple(shapes)} are not in proportion {self.parts} along axis {self.dim}")
        return (fused,)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.cat(tuple(tensors), self.dim),)


@dataclass(frozen=True)
class SplitHeads:
    """One tensor whose rows go head by head becomes several: of each head's rows every one takes its share.

    Attributes:
        count: how many tensors it becomes.
        head: rows of one head in each of them.
    """

    count: int
    head: int

    @property
    def inverse(self) -> FuseHeads:
        return FuseHeads(self.count, self.head)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if not shape or not shape[0] or shape[0] % (self.count * self.head):
            raise UnfitShapeError(f"shape {shape} is not {self.count} times heads of {self.head} rows")
        return ((shape[0] // self.count, *shape[1:]),) * self.count

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        heads = tensor.reshape(-1, self.count, self.head, *tensor.shape[1:])
        return tuple(heads[:, place].flatten(0, 1) for place in range(self.count))


@dataclass(frozen=True)
class FuseHeads:
    """Several tensors of equal size become one whose rows go head by head."""

    count: int
    head: int

    @property
    def inverse(self) -> SplitHeads:
        return SplitHeads(self.count, self.head)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        fused = (self.count * shapes[0][0], *shapes[0][1:]) if shapes[0] else ()
        if self.inverse.shapes([fused]) != tuple(shapes):
            raise UnfitShapeError(f"shapes {tuple(shapes)} are not alike, or not of heads of {self.head} rows")
        return (fused,)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        import torch

        heads = [tensor.reshape(-1, self.head, *tensor.shape[1:]) for tensor in tensors]
        return (torch.stack(heads, 1).flatten(0, 2),)


@dataclass(frozen=True)
class Permute:
    """The axes of one tensor in another order."""

    dims: tuple[int, ...]

    @property
    def inverse(self) -> Permute:
        return Permute(tuple(self.dims.index(axis) for axis in range(len(self.dims))))

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) != len(self.dims):
            raise UnfitShapeError(f"shape {shape} does not have the {len(self.dims)} axes to permute")
        return (tuple(shape[axis] for axis in self.dims),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.permute(self.dims),)


@dataclass(frozen=True)
class Fold:
    """One tensor of a single axis becomes rows: several vectors that a file writes as one."""

    rows: int

    @property
    def inverse(self) -> Unfold:
        return Unfold(self.rows)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) != 1 or shape[0] % self.rows:
            raise UnfitShapeError(f"shape {shape} is not one axis of {self.rows} equal parts")
        return ((self.rows, shape[0] // self.rows),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(self.rows, -1),)


@dataclass(frozen=True)
class Unfold:
    """The rows of one tensor are written one after the other."""

    rows: int

    @property
    def inverse(self) -> Fold:
        return Fold(self.rows)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) != 2 or shape[0] != self.rows:
            raise UnfitShapeError(f"shape {shape} is not {self.rows} rows")
        return ((shape[0] * shape[1],),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(-1),)


@dataclass(frozen=True)
class DropAxes:
    """One tensor loses its last axes, which are all of size one: a convolution of one pixel becomes a linear layer.

    Tensors of one axis, such as the layer's bias, stay as they are.
    """

    count: int

    @property
    def inverse(self) -> AddAxes:
        return AddAxes(self.count)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) == 1:
            return (shape,)
        if len(shape) <= self.count or prod(shape[-self.count :]) != 1:
            raise UnfitShapeError(f"shape {shape} does not end in {self.count} axes of size 1")
        return (shape[: -self.count],)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(self.shapes([tuple(tensor.shape)])[0]),)


@dataclass(frozen=True)
class AddAxes:
    """One tensor gains last axes of size one; tensors of one axis stay as they are."""

    count: int

    @property
    def inverse(self) -> DropAxes:
        return DropAxes(self.count)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        return (shape if len(shape) == 1 else (*shape, *(1,) * self.count),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(self.shapes([tuple(tensor.shape)])[0]),)


@dataclass(frozen=True)
class Flatten:
    """One tensor whose axes are all of size one but for one becomes a vector: a bias that was kept ready to be added.

    Attributes:
        rank: how many axes it has.
        axis: the one that is kept.
    """

    rank: int
    axis: int

    @property
    def inverse(self) -> Spread:
        return Spread(self.rank, self.axis)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) != self.rank or prod(shape[: self.axis] + shape[self.axis + 1 :]) != 1:
            raise UnfitShapeError(f"shape {shape} is not {self.rank} axes of size 1 but for axis {self.axis}")
        return ((shape[self.axis],),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(self.shapes([tuple(tensor.shape)])[0]),)


@dataclass(frozen=True)
class Spread:
    """One vector gains axes of size one on either side."""

    rank: int
    axis: int

    @property
    def inverse(self) -> Flatten:
        return Flatten(self.rank, self.axis)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if len(shape) != 1:
            raise UnfitShapeError(f"shape {shape} is not one axis to spread")
        return (tuple(shape[0] if axis == self.axis else 1 for axis in range(self.rank)),)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.reshape(self.shapes([tuple(tensor.shape)])[0]),)


@dataclass(frozen=True)
class SwapHalves:
    """The two halves of one tensor change places: scale before shift instead of shift before scale."""

    dim: int = 0

    @property
    def inverse(self) -> SwapHalves:
        return self

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        (shape,) = shapes
        if self.dim >= len(shape) or shape[self.dim] % 2:
            raise UnfitShapeError(f"shape {shape} has no halves along axis {self.dim}")
        return (shape,)

    def tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (tensor,) = tensors
        return (tensor.roll(tensor.shape[self.dim] // 2, self.dim),)
