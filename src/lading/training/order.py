"""Which examples meet which step, and from which seed their noise comes. Pure functions of the settings.

Nothing depends on what ran before, nor on how many processes share a step: a run that is resumed goes on as if it had
never stopped, and two processes see together what one sees alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Order:
    """The order of examples over all epochs.

    Attributes:
        buckets: of each example; those of one bucket make batches.
    """

    buckets: tuple[Hashable, ...]
    batch_size: int
    seed: int

    def batch(self, number: int) -> tuple[int, ...]:
        """Return the examples of a batch, counted over all epochs. The last ones of an epoch may be of any bucket."""
        epoch, place = divmod(number, self.batches)
        return _epoch(self, epoch)[place]

    @property
    def batches(self) -> int:
        """Batches to an epoch: each example is in one."""
        return len(_epoch(self, 0))

    def step(self, number: int, batches: int) -> list[tuple[int, tuple[int, ...]]]:
        """Return the numbers and examples of a step's batches, of all processes together."""
        return [(at, self.batch(at)) for at in range(number * batches, (number + 1) * batches)]


@lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> tuple[tuple[int, ...], ...]:
    generator = generator_for(order.seed, "order", epoch)
    shuffled = torch.randperm(len(order.buckets), generator=generator).tolist()
    members: dict[Hashable, list[int]] = {}
    for index in shuffled:
        members.setdefault(order.buckets[index], []).append(index)
    batches: list[tuple[int, ...]] = []
    rest: list[int] = []
    for bucket in members.values():
        whole = len(bucket) // order.batch_size * order.batch_size
        batches += _cut(bucket[:whole], order.batch_size)
        rest += bucket[whole:]
    # Batches are cut alike in every epoch: buckets do not change, so neither does their number.
    batches += _cut(rest, order.batch_size)
    turns = torch.randperm(len(batches), generator=generator).tolist()
    return tuple(batches[turn] for turn in turns)


def _cut(indices: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(indices[start : start + size]) for start in range(0, len(indices), size)]


def generator_for(*words: int | str) -> torch.Generator:
    """Return a generator on the CPU whose seed is made of these words alone.

    >>> a, b = generator_for(0, "noise", 3), generator_for(0, "noise", 3)
    >>> bool((torch.randn(4, generator=a) == torch.randn(4, generator=b)).all())
    True
    """
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
