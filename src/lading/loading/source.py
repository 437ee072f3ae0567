"""A network's tensors in a checkpoint that names or lays them out otherwise: read all at once, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch

from lading.catalog.origin import Origin
from lading.checkpoint import Checkpoint, DiskMap, TensorInfo, read_state_dict
from lading.checkpoint.decoding import decoder_of
from lading.checkpoint.dtypes import DtypeOf, as_stored, cast_tensor, packed_shape, torch_dtype_of
from lading.checkpoint.reading import OnBytes
from lading.checkpoint.ways import Use
from lading.errors import CheckpointError


@dataclass(frozen=True)
class Source:
    """What a network is filled from.

    Attributes:
        origins: of its tensors, in the network's own names; one without runs is an identity matrix.
    """

    checkpoint: Checkpoint
    origins: Mapping[str, Origin]

    @classmethod
    def of(cls, checkpoint: Checkpoint, infos: Mapping[str, TensorInfo]) -> Source:
        """Return a source whose tensors are stored as they are."""
        return cls(checkpoint, {name: Origin.of(info) for name, info in infos.items()})

    def with_identities(self, shapes: Mapping[str, tuple[int, ...]]) -> Source:
        """Return the source with identity matrices, which the files leave out."""
        return replace(self, origins={**self.origins, **{name: Origin((), shape) for name, shape in shapes.items()}})

    def without(self, names: Iterable[str]) -> Source:
        """Return the source without some tensors."""
        left_out = set(names)
        return replace(self, origins={name: one for name, one in self.origins.items() if name not in left_out})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(run.nbytes for run in self._runs(self.origins))

    def __str__(self) -> str:
        return ", ".join(str(file) for file in self.checkpoint.files)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor has without a cast; identities have that of the first that is stored."""
        runs = self.origins[name].runs or (next(run for run in self._runs(self.origins)),)
        return reduce(torch.promote_types, {torch_dtype_of(run) for run in runs})

    def dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        """Return the dtype that a tensor gets where a floating-point one is to be cast."""
        stored = self.stored_dtype(name)
        return wanted if wanted is not None and stored.is_floating_point else stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, as torch has it."""
        origin = self.origins[name]
        return packed_shape(origin.runs[0]) if origin.is_plain and len(origin.runs) == 1 else origin.shape

    def require_decodable(self) -> None:
        """Raise CheckpointError if a tensor is stored in a way that cannot be decoded here."""
        for info in {run.kind: run for run in self._runs(self.origins) if run.encoding is not None}.values():
            decoder_of(info)

    def read(
        self,
        dtype_of: DtypeOf,
        device: str | torch.device = "cpu",
        names: Iterable[str] | None = None,
        on_bytes: OnBytes | None = None,
        meanwhile: Callable[[], None] | None = None,
        use: Use = "views",
    ) -> dict[str, torch.Tensor]:
        """Read tensors, all of them or these; see `read_state_dict`.

        What is one run of a file is a view of what was read; what is put together is in memory twice meanwhile.
        """
        wanted = {name: self.origins[name] for name in (self.origins if names is None else names)}
        runs = list(self._runs(wanted))
        dtypes: dict[TensorInfo, set[torch.dtype]] = {run: set() for run in runs}
        for name, origin in wanted.items():
            for run in origin.runs:
                dtypes[run].add(self.dtype(name, dtype_of(name)))
        chosen = {str(number): next(iter(dtypes[run])) for number, run in enumerate(runs) if len(dtypes[run]) == 1}
        checkpoint = Checkpoint(
            self.checkpoint.inventories, {str(number): run for number, run in enumerate(runs)}, self.checkpoint.missing
        )
        read = read_state_dict(
            checkpoint, lambda key: chosen.get(key), device, on_bytes=on_bytes, meanwhile=meanwhile, use=use
        )
        tensors = {run: read.pop(str(number)) for number, run in enumerate(runs)}
        return {
            name: cast_tensor(
                assemble(origin, [tensors[run] for run in origin.runs]), self.dtype(name, dtype_of(name)), device
            )
            for name, origin in wanted.items()
        }

    @staticmethod
    def _runs(origins: Mapping[str, Origin]) -> Iterator[TensorInfo]:
        """The runs of tensors, each once."""
        yield from dict.fromkeys(run for origin in origins.values() for run in origin.runs)


class SourceMap(DiskMap):
    """A disk map of a source's tensors: each is read, and put together, when it is asked for."""

    def __init__(self, source: Source, dtype_of: DtypeOf = as_stored) -> None:
        super().__init__(source.checkpoint)
        self._source = source
        self._dtype_of = dtype_of
        self._sources = {name: name for name in source.origins}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(name, self._dtype_of(name))

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        origin, dtype = self._source.origins[name], self._source.dtype(name, dtype)
        try:
            runs = [self._readers[run.file].tensor(run, dtype) for run in origin.runs]
            return cast_tensor(assemble(origin, runs), dtype, "cpu")
        except CheckpointError as error:
            raise CheckpointError(f"{error} (it was read for {name})") from None

    def info(self, name: str) -> TensorInfo:
        """Return what a tensor is, and where the first of its runs lies."""
        origin = self._source.origins[name]
        dtype = str(self._source.stored_dtype(name)).removeprefix("torch.")
        first = next(self._source._runs({name: origin} if origin.runs else self._source.origins))
        return replace(first, shape=origin.shape, dtype=dtype)


def assemble(origin: Origin, runs: list[torch.Tensor]) -> torch.Tensor:
    """Make a tensor of its runs; rows lie one after another in it, as they do in a network that was made so."""
    if not runs:
        return torch.eye(*origin.shape)
    if origin.change is not None:
        return origin.change.tensors(runs)[origin.part].contiguous()
    if len(runs) == 1:
        return runs[0]
    return torch.cat([run.flatten() for run in runs]).view(origin.shape)
