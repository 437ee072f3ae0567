"""Names and shapes of a network's tensors, and the questions that tell its config from them."""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterator, Mapping
from functools import cached_property, lru_cache

from lading.catalog.change import Shape

_NUMBER = re.compile(r"[0-9]+")
_MOST_DIGITS = 3
"""Of a layer's number; no network has a thousand layers, and a file that says so shall not make us list them."""


@lru_cache(maxsize=1 << 14)  # a file's names are looked at several times
def pattern_of(name: str) -> str:
    """Return a name with `#` for every number: what the tensors of a network's layers have in common.

    >>> pattern_of("blocks.12.norm1.weight")
    'blocks.#.norm#.weight'
    """
    return _NUMBER.sub("#", name)


class UnknownSizeError(LookupError):
    """A size cannot be told: the tensors that have it are not there, or are no network's; the message names them."""


class AbsentTensorError(UnknownSizeError):
    """A size cannot be told because no tensor of its pattern is there."""


class Shapes(Mapping[str, Shape]):
    """Shapes by name, to be asked by pattern: `{n}` in a pattern stands for any number."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes

    def __getitem__(self, name: str) -> Shape:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def items(self) -> ItemsView[str, Shape]:
        """Return names and shapes; those of a mapping take a call for each."""
        return self._shapes.items()

    @cached_property
    def by_pattern(self) -> dict[str, list[str]]:
        """The names of each pattern, as `pattern_of` makes it, in the order of the file."""
        groups: dict[str, list[str]] = {}
        for name in self._shapes:
            groups.setdefault(pattern_of(name), []).append(name)
        return groups

    def find(self, pattern: str) -> list[str]:
        """Return the names that fit a pattern, those of the lowest numbers first."""
        if "{" not in pattern:
            return [pattern] if pattern in self._shapes else []
        parts = re.split(r"\{[a-z]+\}", pattern)
        expression = re.compile("([0-9]+)".join(map(re.escape, parts)))
        matches = (expression.fullmatch(name) for name in self.by_pattern.get(pattern_of("#".join(parts)), ()))
        found = [match for match in matches if match is not None]
        return [
            match[0] for match in sorted(found, key=lambda match: [(len(number), number) for number in match.groups()])
        ]

    def has(self, pattern: str) -> bool:
        """Whether a tensor of this name, or any of this pattern, is there."""
        return bool(self.find(pattern))

    def shape(self, pattern: str) -> Shape:
        """Return the shape of a tensor, or of the first that fits a pattern.

        Raises:
            AbsentTensorError: no tensor fits.
        """
        found = self.find(pattern)
        if not found:
            raise AbsentTensorError(pattern)
        return self._shapes[found[0]]

    def size(self, pattern: str, axis: int = 0) -> int:
        """Return one size of a tensor, or of the first that fits a pattern.

        Raises:
            UnknownSizeError: no tensor fits, it has no such axis, or nothing is in it.
        """
        shape = self.shape(pattern)
        if axis >= len(shape) or not shape[axis]:
            raise UnknownSizeError(f"{pattern}, axis {axis}: its shape is {shape}")
        return shape[axis]

    def numbers(self, prefix: str) -> list[int]:
        """Return the numbers that follow a prefix: `numbers("blocks")` of `blocks.0.a` and `blocks.2.b` is [0, 2].

        Raises:
            UnknownSizeError: a number is too high for any network.
        """
        start = len(prefix) + 1
        found = {
            name[start:].partition(".")[0]
            for name in self._names_by_head.get(prefix.partition(".")[0], ())
            if name.startswith(f"{prefix}.")
        }
        numbers = [part for part in found if part.isascii() and part.isdecimal()]
        if any(len(part) > _MOST_DIGITS for part in numbers):
            raise UnknownSizeError(f"layers that a network can have: {prefix} has too high numbers")
        return sorted(map(int, numbers))

    def count(self, prefix: str) -> int:
        """Return how many layers there are under a prefix: one more than the highest number; 0 without any.

        >>> Shapes({"blocks.0.norm.weight": (8,), "blocks.1.norm.weight": (8,)}).count("blocks")
        2
        """
        return max(self.numbers(prefix), default=-1) + 1

    def under(self, prefix: str) -> Shapes:
        """Return the tensors whose names begin with a prefix, without it."""
        return Shapes({name[len(prefix) :]: shape for name, shape in self._shapes.items() if name.startswith(prefix)})

    @cached_property
    def _names_by_head(self) -> dict[str, list[str]]:
        heads: dict[str, list[str]] = {}
        for name in self._shapes:
            heads.setdefault(name.partition(".")[0], []).append(name)
        return heads


def quotient(size: int, divisor: int, what: str) -> int:
    """Return an exact quotient of two sizes.

    Raises:
        UnknownSizeError: the division leaves a rest, so the tensors are not what they seem.
    """
    result, rest = divmod(size, divisor) if divisor else (0, 1)
    if rest:
        raise UnknownSizeError(f"{what}: {size} is no multiple of {divisor}")
    return result
