"""Networks whose weights are spread over the processes of a device mesh: each reads its own rows and no more.

What the rows do afterwards is PyTorch's: `torch.distributed.fsdp.fully_shard` gathers a block's weights when it
computes, lets go of them behind it, and spreads their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lading.checkpoint import Checkpoint
from lading.checkpoint.dtypes import cast_tensor
from lading.collection import collection_put_off
from lading.errors import LadingError
from lading.loading.network import build_empty, is_diffusers_model, is_transformers_model, loaded_dtypes
from lading.loading.progress import loading_bar
from lading.loading.source import Source, SourceMap
from lading.loading.streamed import lay_out, named_as_the_network
from lading.memory.outline import parameter_places

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


@collection_put_off()
def load_sharded(
    label: str,
    model_class: type[ModelT],
    source: Source | Checkpoint,
    config: Any,
    dtype: torch.dtype | None,
    mesh: DeviceMesh,
    rename: Callable[[Any], Mapping[str, Any]] | None = None,
) -> ModelT:
    """Build a network and fill this process's part of it; every process of the mesh calls this.

    Weights that are not rows of the files, such as transposed ones, are read whole, one after another, and cut.

    Args:
        label: what the progress bar shows.
        source: a checkpoint's tensors are named as the library of the class names them.
        mesh: of one dimension; or of two, over whose second one the weights are spread, and repeated over the first.
        rename: a state dict converter that renames and does no more.

    Raises:
        CheckpointError: the tensors do not match the network or cannot be decoded, or the converter computes.
    """
    device = device_of(mesh)
    model = build_empty(model_class, config, dtype)
    if isinstance(source, Checkpoint):
        source = Source.of(source, named_as_the_network(model, source, rename))
    source.require_decodable()
    dtype_of = loaded_dtypes(model, dtype)
    held = [name for name, _ in model.named_buffers() if name in source.origins]
    weights, computed = lay_out(model, source, dtype_of, source.read(dtype_of, names=held, use="once"))
    origins = {name: source.origins[own] for name, own in computed.items()}
    origins |= {name: weight.origin for name, weight in weights.items()}
    shard(model, mesh)
    places = parameter_places(model)
    spread: dict[str, DTensor] = {name: getattr(*holders[0]) for name, holders in places.items()}
    for name, local in _read(label, Source(source.checkpoint, origins), spread, device).items():
        parameter = torch.nn.Parameter(_spread(local, spread[name]), spread[name].requires_grad)
        for holder, attribute in places[name]:
            setattr(holder, attribute, parameter)
    for buffer in model.buffers():
        library = is_diffusers_model(model_class) or is_transformers_model(model_class)
        buffer.data = cast_tensor(buffer.data, None if library else dtype, device)
    return model.eval()  # type: ignore[return-value] # build_empty built model_class


def _read(label: str, source: Source, spread: Mapping[str, DTensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Return this process's rows of tensors."""
    rows = {name: rows_of(tensor) for name, tensor in spread.items()}
    parts = {name: source.origins[name].rows(first, last) for name, (first, last) in rows.items() if first < last}
    own = Source(source.checkpoint, {name: origin for name, origin in parts.items() if origin is not None})
    with loading_bar(label, own.nbytes) as on_bytes:
        local = own.read(lambda name: spread[name].dtype, device, on_bytes=on_bytes)
    on_disk = SourceMap(source, lambda name: spread[name].dtype)
    for name, (first, last) in rows.items():
        if first == last:
            local[name] = torch.empty((0, *spread[name].shape[1:]), dtype=spread[name].dtype, device=device)
        elif parts[name] is None:
            local[name] = on_disk[name][first:last].to(device, copy=True)
    return local


def device_of(mesh: DeviceMesh) -> torch.device:
    """Return the device of a mesh that is this process's own.

    Raises:
        LadingError: this process has no part in the mesh.
    """
    if mesh.get_coordinate() is None:
        raise LadingError(f"process {torch.distributed.get_rank()} has no part in {mesh}: load in its processes alone")
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def shard(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Give each process of a mesh its rows of every parameter, to be gathered block by block."""
    from torch.distributed.fsdp import fully_shard

    for block in reversed([model, *_blocks(model)]):  # inner ones first; what is left is the network's own
        fully_shard(block, mesh=mesh)


def _blocks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The parts that compute alone: those that the class says must not be split, else the members of its lists."""
    unsplit = set(getattr(model, "_no_split_modules", None) or ())
    for part in model.modules():
        if unsplit and part is not model and type(part).__name__ in unsplit:
            yield part
        elif not unsplit and isinstance(part, torch.nn.ModuleList):
            yield from part


def rows_of(tensor: DTensor) -> tuple[int, int]:
    """Return the first row that this process holds of a tensor, and the one after the last."""
    mesh = tensor.device_mesh
    dimension = next(number for number, each in enumerate(tensor.placements) if isinstance(each, Shard))
    each = -(-tensor.shape[0] // mesh.size(dimension))  # as torch.chunk cuts
    first = min(mesh.get_local_rank(dimension) * each, tensor.shape[0])
    return first, min(first + each, tensor.shape[0])


def spread_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a tensor that every process has, spread as another of its shape is; nothing is sent."""
    if not isinstance(other, DTensor):
        return tensor
    first, last = rows_of(other)
    return _spread(tensor[first:last].to(other.device, copy=True), other)


def _spread(local: torch.Tensor, other: DTensor) -> DTensor:
    return DTensor.from_local(
        local, other.device_mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )
