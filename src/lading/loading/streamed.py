"""Networks under a memory limit: built empty, planned, and streamed from the checkpoint while they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lading.checkpoint import Checkpoint, DiskMap, FileReader, TensorInfo
from lading.checkpoint.dtypes import DtypeOf, packed_shape, torch_dtype_of
from lading.errors import CheckpointError
from lading.loading.network import build_empty, fill, is_diffusers_model, is_transformers_model
from lading.memory.engine import parameter_places
from lading.memory.image import Weight
from lading.memory.manage import Manager, Stage
from lading.sizes import parse_size

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


@dataclass(frozen=True)
class MemoryShare:
    """A limit, and the modules that take turns under it.

    Attributes:
        limit: in bytes.
    """

    limit: int
    stage: Stage = field(default_factory=Stage)


def smaller_limit(memory_limit: int | str | None, host_memory_limit: int | str | None) -> int | None:
    """Return the limit that counts on the CPU, whose memory is the host's; None for none."""
    limits = [parse_size(limit) for limit in (memory_limit, host_memory_limit) if limit is not None]
    return min(limits, default=None)


def load_streamed(
    model_class: type[ModelT],
    checkpoint: Checkpoint,
    config: Any,
    dtype: torch.dtype | None,
    dtype_of: DtypeOf,
    memory: MemoryShare,
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
    buffers = {name for name, _ in model.named_buffers()}
    dtypes = {name: _computing_dtype(info, dtype_of(name)) for name, info in infos.items()}
    fill(
        model,
        {
            name: _read(info, dtypes[name], checkpoint)
            if name in buffers
            else torch.empty(packed_shape(info), dtype=dtypes[name], device="meta")
            for name, info in infos.items()
        },
        source,
    )
    strided = next((name for name, info in infos.items() if info.stride is not None), None)
    if strided is not None:
        raise CheckpointError(f"{source}: tensor {strided!r} is not stored row by row: use `lading convert` first")
    model.eval()
    weights = {}
    for name, places in parameter_places(model).items():
        stored = name if name in infos else next(twin for twin in _names(model, places) if twin in infos)
        weights[name] = Weight(infos[stored], dtypes[stored])
    Manager(model, weights, checkpoint.inventories, memory.limit, stage=memory.stage)
    return model  # type: ignore[return-value] # build_empty built model_class


def _computing_dtype(info: TensorInfo, wanted: torch.dtype | None) -> torch.dtype:
    stored = torch_dtype_of(info)
    return wanted if wanted is not None and stored.is_floating_point else stored


def _read(info: TensorInfo, dtype: torch.dtype, checkpoint: Checkpoint) -> torch.Tensor:
    inventory = next(inventory for inventory in checkpoint.inventories if inventory.file == info.file)
    reader = FileReader(inventory, "once")
    tensor = reader.tensor(info, dtype)
    reader.close()
    return tensor


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
        renamed = model._fix_state_dict_keys_on_load({name: name for name in checkpoint})  # type: ignore[operator] # ModelMixin's
        return {new: checkpoint[old] for new, old in renamed.items()}
    if is_transformers_model(type(model)):
        return _named_by_transformers(model, checkpoint)
    return dict(checkpoint)


def _named_by_transformers(model: Any, checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Source of the rule: `convert_and_load_state_dict_in_model` in transformers/core_model_loading.py."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
    own, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
    found: dict[str, TensorInfo] = {}
    for name, info in checkpoint.items():
        renamed, computed = rename_source_key(name, renamings, converters, prefix, own)
        if renamed not in own and name in own:
            renamed, computed = rename_source_key(name, [], [], prefix, own)
        if computed is not None and renamed in own:
            raise CheckpointError(
                f"{info.file}: {type(model).__name__} computes {renamed} from stored tensors: save the loaded model "
                "once, and load that under a limit"
            )
        found[renamed] = info
    return found
