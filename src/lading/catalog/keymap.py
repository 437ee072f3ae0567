"""Key maps: how a file names and lays out the tensors that a network names and lays out otherwise.

A map is a list of rules over dotted names. `{n}`, or any other lower-case letter in braces, stands for a number, at
the end `{leaf}` for the last part of a name and `{rest}` for all that follows. The first rule that fits a name counts.
Every rule can be read both ways, so a map has an inverse; that no two names end as one is checked each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lading.catalog.change import (
    AddAxes,
    Chain,
    Change,
    DropAxes,
    Flatten,
    Fold,
    Fuse,
    Permute,
    Same,
    Shape,
    Split,
    SplitHeads,
    SwapHalves,
)
from lading.catalog.change import UnfitShapeError as UnfitShapeError  # part of what a map raises
from lading.catalog.shapes import pattern_of
from lading.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Rule:
    """Names in the file, names in the network, and what happens to the tensors between."""

    file: tuple[str, ...]
    model: tuple[str, ...]
    change: Change = field(default_factory=Same)

    @property
    def inverse(self) -> Rule:
        """The same rule read from the network to the file."""
        return Rule(self.model, self.file, self.change.inverse)


def rename(file: str, model: str) -> Rule:
    """A tensor has another name.

    >>> KeyMap((rename("blocks.{n}.ff.{leaf}", "layers.{n}.mlp.{leaf}"),)).names(["blocks.3.ff.bias"])
    {'layers.3.mlp.bias': ('blocks.3.ff.bias',)}
    """
    return Rule((file,), (model,))


def split(file: str, *model: str, parts: tuple[int, ...] | None = None, dim: int = 0) -> Rule:
    """One tensor of the file is several in the network, of equal size or as `parts` says."""
    return Rule((file,), model, Split(parts or (1,) * len(model), dim))


def squeeze_and_split(file: str, *model: str, count: int = 2) -> Rule:
    """A convolution of one pixel in the file is several linear layers of equal size in the network."""
    return Rule((file,), model, Chain((DropAxes(count), Split((1,) * len(model)))))


def split_heads(file: str, *model: str, head: int) -> Rule:
    """One tensor of the file, whose rows go head by head, is several in the network; a head has `head` rows in each."""
    return Rule((file,), model, SplitHeads(len(model), head))


def fuse(*file: str, model: str, parts: tuple[int, ...] | None = None, dim: int = 0) -> Rule:
    """Several tensors of the file are one in the network."""
    return Rule(file, (model,), Fuse(parts or (1,) * len(file), dim))


def permute(file: str, model: str, *dims: int) -> Rule:
    """The tensor's axes stand in another order in the network."""
    return Rule((file,), (model,), Permute(dims))


def squeeze(file: str, model: str, count: int = 2) -> Rule:
    """A convolution of one pixel in the file is a linear layer in the network."""
    return Rule((file,), (model,), DropAxes(count))


def unsqueeze(file: str, model: str, count: int = 2) -> Rule:
    """A linear layer in the file is a convolution of one pixel in the network."""
    return Rule((file,), (model,), AddAxes(count))


def fold(file: str, model: str, rows: int) -> Rule:
    """Vectors that the file writes as one are the rows of a matrix in the network."""
    return Rule((file,), (model,), Fold(rows))


def flatten(file: str, model: str, rank: int, axis: int) -> Rule:
    """A vector that the file spreads over `rank` axes, all but one of size one, is a vector in the network."""
    return Rule((file,), (model,), Flatten(rank, axis))


def swap_halves(file: str, model: str, dim: int = 0) -> Rule:
    """Scale and shift stand the other way round in the network."""
    return Rule((file,), (model,), SwapHalves(dim))


@dataclass(frozen=True)
class Step:
    """One application of a rule: these tensors of the file make those of the network."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: Change


@dataclass(frozen=True)
class KeyMap:
    """An ordered, invertible list of rules from a file's names to a network's."""

    rules: tuple[Rule, ...]

    @cached_property
    def inverse(self) -> KeyMap:
        """The map from the network's names to the file's."""
        return KeyMap(tuple(rule.inverse for rule in self.rules))

    def steps(self, names: Iterable[str]) -> tuple[tuple[Step, ...], tuple[str, ...]]:
        """Return what has to be done with these names, and the names that no rule fits or that wait for others.

        Raises:
            CheckpointError: two of them would get one name.
        """
        found: dict[tuple[int, tuple[str, ...]], dict[int, str]] = {}
        left: list[str] = []
        for name in names:
            place = self._place(name)
            if place is None:
                left.append(name)
            else:
                number, position, values = place
                found.setdefault((number, values), {})[position] = name
        steps, taken = [], dict[str, str]()
        for (number, values), sources in found.items():
            rule = self.rules[number]
            if len(sources) < len(rule.file):
                left.extend(sources.values())
                continue
            targets = tuple([target.format(*values) for target in self._targets[number]])
            step = Step(tuple([sources[place] for place in range(len(rule.file))]), targets, rule.change)
            for target in targets:
                if target in taken:
                    raise CheckpointError(
                        f"{taken[target]} and {step.sources[0]} both map to {target}: "
                        "the checkpoint mixes two layouts: save it anew in one"
                    )
                taken[target] = step.sources[0]
            steps.append(step)
        return tuple(steps), tuple(left)

    def names(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the network's names, each with the file's names that it is made of."""
        return {target: step.sources for step in self.steps(names)[0] for target in step.targets}

    def shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the network's names and shapes for a file's; names that no rule fits are left out.

        Raises:
            CheckpointError: a tensor cannot have this shape, or two would get one name.
        """
        return self._shapes(self.steps(shapes)[0], shapes)

    def all_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the same, with the names that no rule fits as they are."""
        steps, left = self.steps(shapes)
        return {**{name: shapes[name] for name in left}, **self._shapes(steps, shapes)}

    def _shapes(self, steps: Iterable[Step], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        result: dict[str, Shape] = {}
        for step in steps:
            try:
                result.update(
                    zip(step.targets, step.change.shapes([shapes[name] for name in step.sources]), strict=True)
                )
            except UnfitShapeError as error:
                raise CheckpointError(f"tensor {step.sources[0]}: {error}: this is another layout") from None
        return result

    def tensors(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the network's tensors by name, made of a file's; each of the file's is read once."""
        for step in self.steps(tensors)[0]:
            yield from zip(step.targets, step.change.tensors([tensors[name] for name in step.sources]), strict=True)

    def _place(self, name: str) -> tuple[int, int, tuple[str, ...]] | None:
        """Return the first rule that fits, the name's place in it, and what its placeholders stand for."""
        pattern = pattern_of(name)
        likely = self._likely.get(pattern)
        if likely is None:
            likely = [template for template in self._templates if template.may_fit(pattern)]
            self._likely[pattern] = likely
        numbers = _NUMBER.findall(name)
        for template in likely:
            if not template.literals or all(numbers[index] == number for index, number in template.literals):
                return template.rule, template.place, template.values(name, numbers)
        return None

    @cached_property
    def _likely(self) -> dict[str, list[_Template]]:
        """Name with `#` for numbers -> the templates that may fit it; filled as names come."""
        return {}

    @cached_property
    def _templates(self) -> tuple[_Template, ...]:
        return tuple(
            _Template.parse(name, number, place, self._keys[number])
            for number, rule in enumerate(self.rules)
            for place, name in enumerate(rule.file)
        )

    @cached_property
    def _keys(self) -> tuple[tuple[str, ...], ...]:
        """The placeholders of each rule, in the order of its first name."""
        return tuple(tuple(dict.fromkeys(_PLACEHOLDER.findall(rule.file[0]))) for rule in self.rules)

    @cached_property
    def _targets(self) -> tuple[tuple[str, ...], ...]:
        """The network's names of each rule with numbered placeholders, for `str.format`."""
        return tuple(
            tuple(_PLACEHOLDER.sub(lambda match: f"{{{keys.index(match[1])}}}", name) for name in rule.model)  # noqa: B023 # used at once
            for rule, keys in zip(self.rules, self._keys, strict=True)
        )


@dataclass(frozen=True)
class _Template:
    """A name with placeholders, taken apart so that names are matched without regular expressions.

    Attributes:
        head: what comes before `{leaf}` or `{rest}`, with `#` for numbers and their placeholders.
        literals: which of the head's numbers must be which.
        slots: which of the head's numbers each of the rule's placeholders stands for; -1 for the tail.
        tail: "leaf", "rest" or "" for none.
        numbers: how many the head has.
    """

    rule: int
    place: int
    head: str
    literals: tuple[tuple[int, str], ...]
    slots: tuple[int, ...]
    tail: str
    numbers: int

    @classmethod
    def parse(cls, name: str, rule: int, place: int, keys: tuple[str, ...]) -> _Template:
        tail = next((word for word in ("leaf", "rest") if name.endswith(f"{{{word}}}")), "")
        head = name.removesuffix(f"{{{tail}}}") if tail else name
        slots = [number or letter for letter, number in re.findall(r"\{([a-z])\}|([0-9]+)", head)]
        literals = tuple((index, slot) for index, slot in enumerate(slots) if slot.isdigit())
        head = re.sub(r"\{[a-z]\}|[0-9]+", "#", head)
        if "{" in head:
            raise ValueError(f"key map: {name!r} has a placeholder that is neither a letter nor at the end")
        places = tuple(-1 if key == tail else slots.index(key) for key in keys)
        return cls(rule, place, head, literals, places, tail, len(slots))

    def may_fit(self, pattern: str) -> bool:
        """Whether a name of this pattern fits, literal numbers aside."""
        if not self.tail:
            return pattern == self.head
        if not pattern.startswith(self.head) or len(pattern) == len(self.head):
            return False
        return self.tail == "rest" or "." not in pattern[len(self.head) :]

    def values(self, name: str, numbers: list[str]) -> tuple[str, ...]:
        """Return what the rule's placeholders stand for in a name that fits."""
        if not self.tail:
            return tuple([numbers[slot] for slot in self.slots])
        tail = name[len(self.head) - self.numbers + len("".join(numbers[: self.numbers])) :]
        return tuple([tail if slot < 0 else numbers[slot] for slot in self.slots])
