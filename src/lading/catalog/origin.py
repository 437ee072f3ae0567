"""Where a network's tensors come from: stretches of files that lie one after another in memory. Plain Python.

Most of what a key map does moves whole rows: a split, a fusion, heads that are told apart, halves that change places.
Such a tensor is read from its place in the file like any other. What moves single elements needs a step in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from lading.catalog.change import (
    AddAxes,
    Chain,
    Change,
    DropAxes,
    Flatten,
    Fold,
    Fuse,
    FuseHeads,
    Same,
    Shape,
    Split,
    SplitHeads,
    Spread,
    SwapHalves,
    UnfitShapeError,
    Unfold,
)
from lading.catalog.keymap import KeyMap
from lading.checkpoint.header import TensorInfo
from lading.errors import CheckpointError

Runs = tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Origin:
    """What one tensor of a network is made of.

    Attributes:
        runs: stretches of files; without a change, the tensor's elements are theirs, one run after the other. None at
            all make an identity matrix.
        shape: of the tensor.
        change: what makes the tensor of the runs, which are whole tensors then; None where nothing has to be computed.
        part: which of the change's results it is.
    """

    runs: Runs
    shape: Shape
    change: Change | None = None
    part: int = 0

    @classmethod
    def of(cls, info: TensorInfo) -> Origin:
        """Return the origin of a tensor that is stored as it is."""
        return cls((info,), info.shape)

    @property
    def is_plain(self) -> bool:
        """Whether its elements, row by row, are those of its runs."""
        return bool(self.runs) and self.change is None and all(run.stride is None for run in self.runs)

    def rows(self, first: int, last: int) -> Origin | None:
        """Return some of its rows, at least one, as a tensor of its own; None where they are no stretches of files."""
        if not self.is_plain or not self.shape:
            return None
        parts, at = [], 0
        for run in self.runs:
            count, rest = divmod(prod(run.shape), prod(self.shape[1:]))
            run = replace(run, shape=(count, *self.shape[1:]))
            if rest or not _in_rows(run):
                return None
            start, end = max(first - at, 0), min(last - at, count)
            if start < end:
                parts.append(_rows(run, start, end))
            at += count
        return Origin(tuple(parts), (last - first, *self.shape[1:]))


def find_origins(key_map: KeyMap | None, infos: Mapping[str, TensorInfo]) -> dict[str, Origin]:
    """Return the network's tensors, each with its origin; names that no rule fits stay as they are.

    Args:
        key_map: from the file's names to the network's; None where they are the same.
        infos: the file's tensors.

    Raises:
        CheckpointError: a tensor cannot have its shape, or two would get one name.
    """
    if key_map is None:
        return {name: Origin.of(info) for name, info in infos.items()}
    steps, left = key_map.steps(infos)
    found = {name: Origin.of(infos[name]) for name in left}
    for step in steps:
        sources = tuple(infos[name] for name in step.sources)
        try:
            shapes = step.change.shapes([source.shape for source in sources])
        except UnfitShapeError as error:
            raise CheckpointError(
                f"{sources[0].file}: tensor {step.sources[0]!r}: {error}: this is another layout than it seems"
            ) from None
        runs = _runs(step.change, sources)
        for part, (target, shape) in enumerate(zip(step.targets, shapes, strict=True)):
            found[target] = Origin(sources, shape, step.change, part) if runs is None else Origin(runs[part], shape)
    return found


def _runs(change: Change, sources: Runs) -> tuple[Runs, ...] | None:
    """Return the runs of each result; None where a change moves more than rows, or a source is not stored in rows."""
    first = sources[0]
    if isinstance(change, Same):
        return tuple((source,) for source in sources)
    if not all(_in_rows(source) for source in sources):
        return None
    match change:
        case Fold() | Unfold() | DropAxes() | AddAxes() | Flatten() | Spread():
            return ((replace(first, shape=change.shapes([first.shape])[0]),),)
        case Split(dim=0):
            ends = [sum(change.sizes(first.shape[0])[: number + 1]) for number in range(len(change.parts))]
            return tuple((_rows(first, start, end),) for start, end in zip((0, *ends), ends, strict=False))
        case Fuse(dim=0):
            return (sources,)
        case SplitHeads(count=count, head=head):
            heads = range(0, first.shape[0], count * head)
            return tuple(
                tuple(_rows(first, row + part * head, row + (part + 1) * head) for row in heads)
                for part in range(count)
            )
        case FuseHeads(head=head):
            heads = range(0, first.shape[0], head)
            return (tuple(_rows(source, row, row + head) for row in heads for source in sources),)
        case Chain(changes=changes):
            return _runs_of_chain(changes, sources)
        case SwapHalves(dim=0):
            half = first.shape[0] // 2
            return ((_rows(first, half, 2 * half), _rows(first, 0, half)),)
    return None


def _runs_of_chain(changes: tuple[Change, ...], sources: Runs) -> tuple[Runs, ...] | None:
    """Return the runs of each result of changes one after the other; None where one moves more, or has two runs."""
    results: tuple[Runs, ...] | None = tuple((source,) for source in sources)
    for change in changes:
        if results is None or any(len(runs) != 1 for runs in results):
            return None
        results = _runs(change, tuple(runs[0] for runs in results))
    return results


def _in_rows(info: TensorInfo) -> bool:
    """Whether each row of a stored tensor has bytes of its own."""
    return info.stride is None and (info.encoding is None or prod(info.shape[1:]) % info.encoding.block == 0)


def _rows(info: TensorInfo, first: int, last: int) -> TensorInfo:
    """Some rows of a stored tensor, as a stored tensor."""
    row = (info.end - info.start) // info.shape[0] if info.shape[0] else 0
    start, end = info.start + first * row, info.start + last * row
    encoding = None if info.encoding is None else info.encoding.after(first * prod(info.shape[1:]))
    return replace(info, shape=(last - first, *info.shape[1:]), start=start, end=end, encoding=encoding)
