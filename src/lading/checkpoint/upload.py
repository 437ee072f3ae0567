"""Files to a device: read into a ring of pinned slots, copied from there while the next slots fill, cast on the device.

Consecutive tensors travel in one copy. Host memory holds the ring and nothing else.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from lading import events
from lading.checkpoint.arena import BLOCK, Arena, block_ceiling, block_floor
from lading.checkpoint.casting import Span, cut_spans
from lading.checkpoint.dtypes import DtypeOf, cast_of, packed_shape, torch_dtype_of
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.reading import PIECE_BYTES, THREADS, OnBytes, OpenFile
from lading.checkpoint.stretches import find_stretches
from lading.devices import Device, Event

GROUP_BYTES = 64 << 20
"""Consecutive tensors share an allocation up to this size: few copies, and no tensor keeps a whole file in memory."""
SLOTS = THREADS + 2
"""One for each reading thread, and two whose copies are on the way."""
_SLOT_BYTES = PIECE_BYTES + 2 * BLOCK
_ALIGNMENT = 16
"""Of a tensor's address, which a device's fast kernels ask for."""

Tensors = dict[str, torch.Tensor]
Task = Callable[[], None]


@dataclass(frozen=True)
class _Slot:
    """Pinned memory for one piece."""

    ring: Arena
    start: int

    def view(self, nbytes: int) -> memoryview:
        return self.ring.view(self.start, self.start + nbytes)

    def tensor(self, start: int, end: int) -> torch.Tensor:
        return self.ring.tensor(torch.uint8, self.start + start, self.start + end)


class Upload:
    """The way of tensors to one device, for several files; a `with` block waits for the copies and unpins the ring."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ring = Arena(0, SLOTS * _SLOT_BYTES)
        self._unpin = device.pin(self._ring.view(0, SLOTS * _SLOT_BYTES))
        self._free: queue.SimpleQueue[tuple[_Slot, Event | None]] = queue.SimpleQueue()
        for number in range(SLOTS):
            self._free.put((_Slot(self._ring, number * _SLOT_BYTES), None))
        self._stored: dict[_Slot, torch.Tensor] = {}

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._unpin()

    def wait(self) -> None:
        """Return when every copy asked for so far is done."""
        self._device.event().wait()

    def prepare(
        self, source: OpenFile, infos: Mapping[str, TensorInfo], dtype_of: DtypeOf, on_bytes: OnBytes | None
    ) -> tuple[list[Task], Callable[[], Tensors]]:
        """Allocate tensors on the device; return the tasks that fill them, and what gives them when that is done.

        Raises:
            CheckpointError: torch has no dtype that a tensor is stored in.
        """
        wanted = {name: cast_of(info, dtype_of(name)) for name, info in infos.items()}
        cast = {name: info for name, info in infos.items() if wanted[name] is not None and _is_plain(info)}
        stored = {name: info for name, info in infos.items() if name not in cast}
        flat: Tensors = {}
        tasks: list[Task] = []
        for stretch in find_stretches(stored, gap_bytes=0, most_bytes=GROUP_BYTES):
            start, end = stretch.start, stretch.end
            memory = self._device.empty(end - start)
            flat |= {name: memory[stored[name].start - start : stored[name].end - start] for name in stretch.names}
            for first in range(start, end, PIECE_BYTES):
                last = min(first + PIECE_BYTES, end)
                tasks.append(partial(self._send, source, first, last, memory[first - start : last - start], on_bytes))
        targets = {name: self._empty(info, wanted[name]) for name, info in cast.items()}
        tasks += [partial(self._send_cast, source, span, on_bytes) for span in cut_spans(cast, targets)]
        if cast and not self._stored:
            self._stored = {_Slot(self._ring, n * _SLOT_BYTES): self._device.empty(_SLOT_BYTES) for n in range(SLOTS)}
        self._device.hold_copies(self._device.mark())  # whatever used this memory before

        def finish() -> Tensors:
            self.wait()
            nothing = self._device.empty(0)
            placed = targets | {name: _shaped(flat.get(name, nothing), info) for name, info in stored.items()}
            return {name: placed[name].to(wanted[name] or placed[name].dtype) for name in infos}

        return tasks, finish

    def _empty(self, info: TensorInfo, dtype: torch.dtype | None) -> torch.Tensor:
        stored = torch_dtype_of(info)
        dtype = dtype or stored
        elements = (info.end - info.start) // stored.itemsize
        return self._device.empty(elements * dtype.itemsize).view(dtype).view(packed_shape(info))

    def _send(self, source: OpenFile, start: int, end: int, target: torch.Tensor, on_bytes: OnBytes | None) -> None:
        with self._filled(source, start, end) as (_, piece):
            self._copy(source, piece, target)
        if on_bytes is not None:
            on_bytes(end - start)

    def _send_cast(self, source: OpenFile, span: Span, on_bytes: OnBytes | None) -> None:
        with self._filled(source, span.start, span.end) as (slot, piece):
            memory = self._stored[slot]
            shift = span.start % _ALIGNMENT  # elements are aligned on the device as they are in the file
            self._copy(source, piece, memory[shift : shift + len(piece)])
            for part in span.parts:
                stored = memory[shift + part.start - span.start : shift + part.end - span.start]
                self._device.copy(stored.view(part.dtype), part.target)
        if on_bytes is not None:
            on_bytes(span.end - span.start)

    def _copy(self, source: OpenFile, piece: torch.Tensor, target: torch.Tensor) -> None:
        clock = partial(self._device.moment, copies=True)
        with events.span("copy", source.file.name, source.file, len(piece), clock):
            self._device.copy(piece, target)

    @contextmanager
    def _filled(self, source: OpenFile, start: int, end: int) -> Iterator[tuple[_Slot, torch.Tensor]]:
        """Lend a slot with a stretch of the file; it is free again when the copies asked for in the block are done."""
        slot, event = self._free.get()
        try:
            if event is not None:
                event.wait()
            first = block_floor(start)
            source.fill(slot.view(block_ceiling(end) - first), first)
            yield slot, slot.tensor(start - first, end - first)
        finally:
            self._free.put((slot, self._device.event()))


def _is_plain(info: TensorInfo) -> bool:
    """Whether a tensor's bytes can be cast piece by piece: dense, aligned, and there are some."""
    return info.stride is None and info.start % torch_dtype_of(info).itemsize == 0 and info.end > info.start


def _shaped(flat: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """A tensor of bytes on the device, which must be all there now, as what they are."""
    flat = (flat if flat.data_ptr() % _ALIGNMENT == 0 else flat.clone()).view(torch_dtype_of(info))
    return flat.view(packed_shape(info)) if info.stride is None else flat.as_strided(info.shape, info.stride)
