"""Networks under a memory limit: built empty, planned, and streamed from the checkpoint while they compute."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from typing import Any, TypeVar

import torch

from lading.checkpoint import Checkpoint, DiskMap, TensorInfo
from lading.checkpoint.dtypes import DtypeOf
from lading.devices import find_device
from lading.errors import CheckpointError, ComponentError
from lading.loading.examples import example_call
from lading.loading.network import (
    build_empty,
    fill,
    is_diffusers_model,
    is_transformers_model,
    named_by_transformers,
    with_current_names,
)
from lading.loading.source import Source
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.memory.management import Manager
from lading.memory.outline import parameter_places
from lading.memory.spool import Spool

_log = logging.getLogger("lading.loading")

_BATCH_BYTES = 64 << 20
"""Of weights that are made of what is stored: so many are in memory while they are written."""

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def limits_on(
    device: str | torch.device, memory_limit: int | str | None, host_memory_limit: int | str | None
) -> Limits | None:
    """Return the limits for a device; None for none.

    Raises:
        ComponentError: torch alone serves the device, so that lading cannot keep a limit there.
    """
    if memory_limit is None and host_memory_limit is None:
        return None
    found = find_device(device)
    if found is None and torch.device(device).type != "cpu":
        raise ComponentError(f"a memory limit is kept on the CPU and on CUDA devices, not on {device!r}")
    return Limits.of(memory_limit, host_memory_limit, found)


def load_streamed(
    model_class: type[ModelT],
    source: Source | Checkpoint,
    config: Any,
    dtype: torch.dtype | None,
    dtype_of: DtypeOf,
    limits: Limits,
    rename: Callable[[Any], Mapping[str, Any]] | None = None,
    empty: torch.nn.Module | None = None,
) -> ModelT:
    """Build a network whose weights stay in the checkpoint and pass through memory within a limit.

    Weights that are not rows of the files, such as transposed ones, are written once to a temporary folder, which goes
    with the manager. `manager_of` gives that.

    Args:
        source: a checkpoint's tensors are named as the library of the class names them.
        rename: a state dict converter that renames and does no more.
        empty: the network without weights, where it is built already.

    Raises:
        CheckpointError: the tensors do not match the network or cannot be decoded, or the converter computes.
        MemoryLimitError: the limit is too small; no weight that is streamed from the checkpoint has been read.
    """
    model = build_empty(model_class, config, dtype) if empty is None else empty
    if isinstance(source, Checkpoint):
        source = Source.of(source, named_as_the_network(model, source, rename))
    source.require_decodable()
    buffers = [name for name, _ in model.named_buffers() if name in source.origins]
    weights, rest = lay_out(model, source, dtype_of, source.read(dtype_of, names=buffers, use="once"))
    with ExitStack() as undoing:
        inventories = source.checkpoint.inventories
        if rest:
            spool = Spool()
            undoing.callback(spool.remove)
            _rewrite(source, rest, dtype_of, spool)
            weights |= spool.weights
            inventories = (*inventories, *spool.inventories)
        manager = Manager(model, weights, inventories, limits, example_call(model))
        weakref.finalize(manager, undoing.pop_all().close)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(manager.device)
    return model  # type: ignore[return-value] # build_empty built model_class


def lay_out(
    model: torch.nn.Module, source: Source, dtype_of: DtypeOf, buffers: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Weight], dict[str, str]]:
    """Give an empty network its dtypes and buffers, and tell where each parameter's bytes are.

    Args:
        model: on the meta device; its parameters stay there.
        buffers: those that the source has.

    Returns:
        Parameter name -> its weight; and, for those that are not rows of the files, the name of its tensor there.

    Raises:
        CheckpointError: the tensors do not match the network.
    """
    dtypes = {name: source.dtype(name, dtype_of(name)) for name in source.origins}
    empty = {name: torch.empty(source.shape(name), dtype=dtypes[name], device="meta") for name in source.origins}
    fill(model, {**empty, **buffers}, str(source))
    model.eval()
    stored = {
        name: name if name in source.origins else next(twin for twin in _names(model, places) if twin in source.origins)
        for name, places in parameter_places(model).items()
    }
    plain = {name: own for name, own in stored.items() if source.origins[own].is_plain}
    weights = {name: Weight(source.origins[own], dtypes[own]) for name, own in plain.items()}
    return weights, {name: own for name, own in stored.items() if name not in plain}


def _rewrite(source: Source, names: Mapping[str, str], dtype_of: DtypeOf, spool: Spool) -> None:
    """Write weights as they lie in memory: parameter name -> the name of its tensor in the source."""
    _log.info("%s: not made of rows of the file, and written to %s: %s", source, spool.folder, ", ".join(names))
    batch: dict[str, str] = {}
    for number, (name, own) in enumerate(names.items(), 1):
        batch[name] = own
        nbytes = sum(prod(source.shape(one)) * source.stored_dtype(one).itemsize for one in batch.values())
        if nbytes >= _BATCH_BYTES or number == len(names):
            tensors = source.read(dtype_of, names=set(batch.values()), use="once")
            for _ in spool.take({name: tensors[own] for name, own in batch.items()}):
                pass  # what is given back is on the disk
            batch.clear()


def _names(model: torch.nn.Module, places: list[tuple[torch.nn.Module, str]]) -> list[str]:
    wanted = {(id(part), attribute) for part, attribute in places}
    return [
        f"{prefix}{'.' if prefix else ''}{attribute}"
        for prefix, part in model.named_modules(remove_duplicate=False)
        for attribute in part._parameters
        if (id(part), attribute) in wanted
    ]


def named_as_the_network(
    model: torch.nn.Module, checkpoint: Checkpoint, rename: Callable[[Any], Mapping[str, Any]] | None
) -> dict[str, TensorInfo]:
    """Give the checkpoint's tensors the network's names, as the libraries do when they load."""
    if rename is not None:
        on_disk = DiskMap(list(checkpoint.files), state_dict_converter=rename)
        return {name: on_disk.info(name) for name in on_disk}
    if is_diffusers_model(type(model)):
        return dict(with_current_names(model, checkpoint))
    if is_transformers_model(type(model)):
        infos, computed = named_by_transformers(model, checkpoint)
        if computed:
            raise CheckpointError(
                f"{', '.join(map(str, checkpoint.files))}: {type(model).__name__} computes {computed[0]} from stored "
                "tensors: save the loaded model once, and load that under a limit"
            )
        return infos
    return dict(checkpoint)
