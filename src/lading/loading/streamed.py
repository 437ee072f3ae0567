"""Networks under a memory limit: built empty, planned, and streamed from the checkpoint while they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lading.checkpoint import Checkpoint, DiskMap, TensorInfo, read_state_dict
from lading.checkpoint.dtypes import DtypeOf, cast_of, packed_shape, torch_dtype_of
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
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.memory.management import Manager
from lading.memory.outline import parameter_places

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
    checkpoint: Checkpoint,
    config: Any,
    dtype: torch.dtype | None,
    dtype_of: DtypeOf,
    limits: Limits,
    rename: Callable[[Any], Mapping[str, Any]] | None = None,
) -> ModelT:
    """Build a network whose weights stay in the checkpoint and pass through memory within a limit.

    `manager_of` gives its manager.

    Args:
        rename: a state dict converter that renames and does no more.

    Raises:
        CheckpointError: the tensors do not match the network, or the converter computes.
        MemoryLimitError: the limit is too small; no weight has been read.
    """
    source = ", ".join(str(file) for file in checkpoint.files)
    model = build_empty(model_class, config, dtype)
    infos = named_as_the_network(model, checkpoint, rename)
    dtypes = {name: cast_of(info, dtype_of(name)) or torch_dtype_of(info) for name, info in infos.items()}
    empty = {name: torch.empty(packed_shape(infos[name]), dtype=dtypes[name], device="meta") for name in infos}
    buffers = {name: infos[name] for name, _ in model.named_buffers() if name in infos}
    fill(model, empty | read_state_dict(Checkpoint(checkpoint.inventories, buffers), dtype_of, use="once"), source)
    strided = next((name for name, info in infos.items() if info.stride is not None), None)
    if strided is not None:
        raise CheckpointError(f"{source}: tensor {strided!r} is not stored row by row: use `lading convert` first")
    model.eval()
    weights = {}
    for name, places in parameter_places(model).items():
        stored = name if name in infos else next(twin for twin in _names(model, places) if twin in infos)
        weights[name] = Weight(infos[stored], dtypes[stored])
    manager = Manager(model, weights, checkpoint.inventories, limits, example_call(model))
    for buffer in model.buffers():
        buffer.data = buffer.data.to(manager.device)
    return model  # type: ignore[return-value] # build_empty built model_class


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
