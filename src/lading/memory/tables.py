"""Tables of which a call needs a few rows: embeddings, read row by row as tokens ask for them.

A table has addresses for all of its rows, and memory only for those that the last lookup read; a larger vocabulary
takes no more of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from lading.checkpoint.arena import BLOCK, Arena, block_ceiling
from lading.checkpoint.reading import Reading
from lading.memory.files import WeightFiles, row_casting_bytes
from lading.memory.image import Weight
from lading.memory.trace import Trace


def is_lookup(module: torch.nn.Module) -> bool:
    """Whether a module only looks rows up."""
    return isinstance(module, torch.nn.Embedding) and module.max_norm is None


def has_rows(weight: Weight) -> bool:
    """Whether a weight lies row by row in one place of a file."""
    return weight.origin.is_plain and len(weight.origin.runs) == 1 and len(weight.shape) == 2


def rows_bytes(tables: Mapping[str, str], weights: Mapping[str, Weight], traces: Iterable[Trace]) -> int:
    """Return the most that rows take in a call: whole blocks, of which a row may share its first and its last.

    Args:
        tables: leaf -> its table's name.
    """
    largest = dict.fromkeys(tables.values(), 0)
    for call in (call for trace in traces for call in trace.calls if call.leaf in tables):
        weight = weights[name := tables[call.leaf]]
        looked_up = sum(one.nbytes for one in call.operations if one.operator == "embedding") // 2  # read, and written
        rows, row_bytes = looked_up // _row_bytes(weight), block_ceiling(_row_bytes(weight)) + BLOCK
        casting_bytes = 0 if weight.in_place else row_casting_bytes()
        largest[name] = max(largest[name], min(rows * row_bytes, block_ceiling(weight.nbytes) + BLOCK) + casting_bytes)
    return sum(largest.values())


class Table:
    """One table's memory.

    Attributes:
        tensor: all of it; what was not read last is zero.
    """

    def __init__(self, name: str, files: WeightFiles) -> None:
        self._name = name
        self._files = files
        self._weight = files.weights[name]
        (run,) = self._weight.origin.runs
        self._start = run.start if self._weight.in_place else 0
        end = self._start + self._weight.nbytes
        self._arena = Arena(self._start, end, huge_pages=False)
        self.tensor = self._arena.tensor(self._weight.dtype, self._start, end).view(self._weight.shape)

    def discard(self) -> None:
        """Give the memory back until rows are read again."""
        self._arena.discard()

    def read(self, rows: torch.Tensor) -> int:
        """Read rows in place of those before; return how many bytes.

        Raises:
            CheckpointError: they cannot be read any more.
        """
        self.discard()
        asked_for = sorted(row for row in set(rows.flatten().tolist()) if 0 <= row < self._weight.shape[0])
        spans = list(_spans(asked_for))
        Reading(self._files.row_tasks(self._name, spans, self._arena)).wait()
        return sum(end - start for start, end in spans) * _row_bytes(self._weight)


def _row_bytes(weight: Weight) -> int:
    return weight.shape[1] * weight.dtype.itemsize


def _spans(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers: the first, and one past the last."""
    start = end = -1
    for row in rows:
        if row != end:
            if end > start:
                yield start, end
            start = row
        end = row + 1
    if end > start:
        yield start, end
