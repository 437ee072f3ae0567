"""One file's tensors, read in the way that suits the file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from lading import events, host
from lading.checkpoint.arena import Arena, Scratch, block_ceiling, block_floor
from lading.checkpoint.header import FileInventory, TensorInfo
from lading.checkpoint.mapping import FileMapping, map_file, resident_share
from lading.checkpoint.reading import PIECE_BYTES, Extent, OnBytes, OpenFile, Reading
from lading.checkpoint.stretches import find_stretches
from lading.checkpoint.torch_save import let_torch_save
from lading.checkpoint.ways import Choice, Facts, Use, choose_way, fits, forced_way
from lading.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from lading.checkpoint.casting import Span
    from lading.checkpoint.decoding import Decoder
    from lading.checkpoint.dtypes import DtypeOf
    from lading.checkpoint.encoding import Encoding
    from lading.checkpoint.upload import Upload

    Tensors: TypeAlias = dict[str, torch.Tensor]

_RESIDENT = 0.95
"""From this share in the page cache on, there is nothing to fetch for a mapping."""

_log = logging.getLogger(__name__)


class Loading:
    """Tensors of one file under way."""

    def __init__(self, reading: Reading, finish: Callable[[], Tensors]) -> None:
        self._reading = reading
        self._finish = finish

    def wait(self) -> Tensors:
        """Return the tensors when they are there.

        Raises:
            CheckpointError: the file has changed or cannot be read, or torch cannot do a cast.
        """
        self._reading.wait()
        return self._finish()

    def cancel(self) -> None:
        """Stop, and return when nothing is read any more."""
        self._reading.cancel()


class FileReader:
    """Reads the tensors of one file.

    The file must stay as it was when its header was read: a change is an error, at the start and after every read.

    Attributes:
        choice: the way, and why it was chosen.
    """

    def __init__(self, inventory: FileInventory, use: Use = "views", together: int = 0) -> None:
        """Open a file. The environment variable `LADING_READ` forces the way.

        Args:
            use: what for; see `Facts`.
            together: bytes of all files that are read at the same time, where this is one of several.

        Raises:
            CheckpointError: the file cannot be opened, or has changed.
        """
        self._source = OpenFile(inventory)
        self._mapping: FileMapping | None = None
        forced, stamp = forced_way(), inventory.stamp
        facts = Facts(
            max(stamp.nbytes, together),
            resident_share(self._source.descriptor, stamp.nbytes),
            host.file_system_of(stamp.device),
            host.available_memory(),
            use,
        )
        self.choice = choose_way(facts) if forced is None else Choice(forced, "forced by LADING_READ")
        self._decoders: dict[Encoding, Decoder] = {}
        self._fits = fits(facts.nbytes, facts.available)
        self._resident = facts.resident >= _RESIDENT
        if self.choice.way == "direct" and not self._source.open_direct():
            self.choice = Choice("buffered", "no direct reads on this file system")
        self._tell_choice()

    def read(self, extents: Iterable[Extent], on_bytes: OnBytes | None = None) -> Reading:
        """Start to read extents into memory that the caller owns; see `Reading`."""
        return Reading(self._source.tasks(extents, on_bytes))

    def tasks(self, extents: Iterable[Extent], on_bytes: OnBytes | None = None) -> list[Callable[[], None]]:
        """The reads that fill extents, for a `Reading` of several files."""
        return list(self._source.tasks(extents, on_bytes))

    def casts(
        self,
        infos: Mapping[str, TensorInfo],
        targets: Mapping[str, torch.Tensor],
        scratch: Scratch,
        on_bytes: OnBytes | None = None,
    ) -> list[Callable[[], None]]:
        """The reads that fill tensors of other dtypes than the stored ones, for a `Reading` of several files.

        Raises:
            CheckpointError: a tensor is encoded, and cannot be decoded here.
        """
        from lading.checkpoint.casting import cut_spans
        from lading.checkpoint.decoding import decoder_of

        for info in infos.values():
            if info.encoding is not None and info.encoding not in self._decoders:
                self._decoders[info.encoding] = decoder_of(info)
        spans = cut_spans(infos, targets, scratch.piece_bytes)
        mapping = self._passing_mapping() if spans else None
        memory = scratch if mapping is None else mapping
        return [partial(self._cast, span, memory, on_bytes) for span in spans]

    def fill(self, memory: memoryview, offset: int) -> None:
        """Read into memory that the caller owns, in this thread; see `OpenFile.fill`."""
        self._source.fill(memory, offset)

    def tensor(self, info: TensorInfo, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return one tensor on the CPU, a floating-point one in a dtype; see `start`."""
        return self.start({"": info}, lambda _: dtype).wait()[""]

    def start(
        self,
        infos: Mapping[str, TensorInfo],
        dtype_of: DtypeOf | None = None,
        on_bytes: OnBytes | None = None,
        scratch: Scratch | None = None,
    ) -> Loading:
        """Start to load tensors to the CPU.

        Args:
            infos: tensors of this file.
            dtype_of: a tensor's name -> the dtype that it gets if it is floating-point; None casts nothing.
            on_bytes: told of the file's bytes as they arrive, from several threads.
            scratch: what casts read into; one for several files keeps memory low.

        Raises:
            CheckpointError: torch has no such dtype, or there is no memory.
        """
        from lading.checkpoint.casting import cast_targets, stored_tensor
        from lading.checkpoint.dtypes import as_stored, cast_of, cast_tensor

        dtype_of = dtype_of or as_stored
        wanted = {name: cast_of(info, dtype_of(name)) for name, info in infos.items()}
        cast = {
            name: info
            for name, info in infos.items()
            if info.encoding is not None or (wanted[name] and info.nbytes and info.stride is None)
        }
        stored = {name: info for name, info in infos.items() if name not in cast}
        targets = cast_targets(cast, wanted)
        memory, tasks = self._memory(stored, on_bytes)
        scratch = scratch or Scratch(PIECE_BYTES)
        tasks += self.casts(cast, targets, scratch, on_bytes)

        def finish() -> Tensors:
            loaded = {name: stored_tensor(info, memory) for name, info in stored.items()} | targets
            return {name: cast_tensor(loaded[name], wanted[name], "cpu") for name in infos}

        return Loading(Reading(tasks), finish)

    def start_on(
        self, upload: Upload, infos: Mapping[str, TensorInfo], dtype_of: DtypeOf, on_bytes: OnBytes | None = None
    ) -> Loading:
        """Start to load tensors to a device; see `start`. Call `wait` inside the upload's `with` block."""
        tasks, finish = upload.prepare(self._source, infos, dtype_of, on_bytes)
        return Loading(Reading(tasks), finish)

    def close(self) -> None:
        """Close the file; tensors that are views of it stay valid."""
        self._source.close()

    def _memory(
        self, infos: Mapping[str, TensorInfo], on_bytes: OnBytes | None
    ) -> tuple[Arena | FileMapping, list[Callable[[], None]]]:
        """Return the memory that tensors will be views of, and the tasks that fill it."""
        stretches = [(stretch.start, stretch.end) for stretch in find_stretches(infos)]
        if not stretches:
            return Arena(0, 0), []
        mapping = self._mapped() if self.choice.way == "mapped" else None
        if mapping is not None:
            if self._fits and not self._resident:
                return mapping, list(self._source.fetches(stretches, on_bytes))
            if on_bytes is not None:
                on_bytes(sum(end - start for start, end in stretches))
            return mapping, []
        arena = Arena(stretches[0][0], stretches[-1][1])
        blocks = [(block_floor(start), block_ceiling(end)) for start, end in stretches]
        wanted = [Extent(start, arena.view(start, end)) for start, end in blocks]
        return arena, list(self._source.tasks(wanted, on_bytes))

    def _mapped(self) -> FileMapping | None:
        """Map the file, or return None where that would not be safe and its bytes fit in memory."""
        source = self._source
        if self._mapping is None:
            mapping = map_file(source.file, source.nbytes)
            if mapping is None:
                if self._fits:
                    self.choice = Choice("buffered", "it cannot be held by a lease")
                    self._tell_choice()
                    return None
                _log.warning(
                    "%s: larger than the free memory, and mapped without a lease: if it is cut while its tensors "
                    "are in use, this process ends. Load it as the user who owns it, or free memory",
                    source.file,
                )
                mapping = map_file(source.file, source.nbytes, guarded=False)
            self._mapping = mapping
            source.require_unchanged()
            let_torch_save()
        return self._mapping

    def _tell_choice(self) -> None:
        _log.debug("%s: %s", self._source.file, self.choice)
        now = time.perf_counter()
        events.tell("open", str(self.choice), self._source.file, now, now, self._source.nbytes)

    def _passing_mapping(self) -> FileMapping | None:
        """Map a file that is in the page cache for casts alone: what they have used is let go of piece by piece."""
        if self.choice.way != "mapped" or not self._resident:
            return None
        mapping = map_file(self._source.file, self._source.nbytes)
        self._source.require_unchanged()
        return mapping

    def _cast(self, span: Span, memory: Scratch | FileMapping, on_bytes: OnBytes | None) -> None:
        from lading.checkpoint.casting import cast_span

        start, end = block_floor(span.start), block_ceiling(span.end)
        try:
            if isinstance(memory, FileMapping):
                memory.populate(start, end)
                cast_span(span, memory, 0, self._decoders)
                memory.forget(span.start, span.end)
            else:
                with memory.borrow() as arena:
                    self._source.fill(arena.view(0, end - start), start)
                    cast_span(span, arena, start, self._decoders)
        except RuntimeError as error:
            raise CheckpointError(f"{self._source.file}: torch cannot cast its tensors: {error}") from None
        if on_bytes is not None:
            on_bytes(span.end - span.start)
