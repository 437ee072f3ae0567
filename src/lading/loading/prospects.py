"""Networks of a blueprint, built empty, with their weights where files hold them, or would hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lading.catalog.construction import model_class as class_named
from lading.catalog.origin import Origin
from lading.checkpoint import Checkpoint
from lading.checkpoint.dtypes import DtypeOf, named_dtype
from lading.checkpoint.header import FileInventory, FileStamp, TensorInfo
from lading.errors import ComponentError
from lading.loading.blueprint import Network
from lading.loading.loaders import ComponentSpec, resolve_class
from lading.loading.model import dtype_rule
from lading.loading.network import (
    build_empty,
    is_diffusers_model,
    loaded_dtypes,
)
from lading.loading.recognised import source_of
from lading.loading.source import Source
from lading.loading.streamed import lay_out, named_as_the_network
from lading.memory.image import Weight
from lading.memory.prediction import Prospect


def network_class(name: str, network: Network, source: str) -> type[torch.nn.Module]:
    """Return the class of a network.

    Args:
        source: of the model, for the message.

    Raises:
        ComponentError: only other libraries have it.
        IdentificationError: it is not installed.
    """
    library, _, class_name = network.model_class.rpartition(".")
    if library.startswith("lading."):
        return class_named(network.model_class)
    return resolve_class(ComponentSpec(name, library, class_name, Path(source) / name))


def dtype_of_network(model_class: type, network: Network, torch_dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype in which `load_pipeline` loads a network; None for the dtypes in which it is stored."""
    if torch_dtype is not None:
        return named_dtype(torch_dtype)
    if is_diffusers_model(model_class):
        return torch.float32
    stated = network.config.get("dtype", network.config.get("torch_dtype"))
    return None if stated is None else named_dtype(stated)


def make_prospect(
    name: str, network: Network, torch_dtype: torch.dtype | str | None, device: torch.device, source: str
) -> Prospect:
    """Build a network empty, and lay out its weights as its checkpoint does, or as one file of them all would.

    Args:
        name: what the pipeline calls it.
        source: of the model, for messages.

    Raises:
        ComponentError: it cannot be built, or is quantised by its library.
        CheckpointError: its checkpoint does not match its config.
    """
    if "quantization_config" in network.config:
        raise ComponentError(
            f"{source}: {name!r} is quantised by its library, and what it takes is not known from its config: "
            "plan the unquantised model"
        )
    model_class = network_class(name, network, source)
    dtype = dtype_of_network(model_class, network, torch_dtype)
    model = build_empty(model_class, network.config, dtype)
    checkpoint = network.checkpoint()
    dtype_of = loaded_dtypes(model, dtype)
    if checkpoint is None:
        found = Source.of(*_one_file(model, dtype_of))
    elif network.candidate is not None:
        found = source_of(checkpoint, network.candidate)
    else:
        found = Source.of(checkpoint, named_as_the_network(model, checkpoint, None))
        dtype_of = dtype_rule(model_class, network.config, dtype, checkpoint)
    buffers = {
        buffer: torch.empty(found.shape(buffer), dtype=found.dtype(buffer, dtype_of(buffer)), device="meta")
        for buffer, _ in model.named_buffers()
        if buffer in found.origins
    }
    weights, others = lay_out(model, found, dtype_of, buffers)
    rewritten = {own: found.shape(own) for own in others.values()}
    places = dict(_infos(rewritten, {own: found.dtype(own, dtype_of(own)) for own in rewritten}))
    written = {name: Weight(Origin.of(places[own]), found.dtype(own, dtype_of(own))) for name, own in others.items()}
    return Prospect(model, weights | written, device)


def _one_file(model: torch.nn.Module, dtype_of: DtypeOf) -> tuple[Checkpoint, Mapping[str, TensorInfo]]:
    """A checkpoint as the libraries would write it, in the dtypes in which the network computes."""
    state: dict[str, Any] = model.state_dict()
    dtypes = {
        name: (dtype_of(name) or tensor.dtype) if tensor.is_floating_point() else tensor.dtype
        for name, tensor in state.items()
    }
    infos = dict(_infos({name: tuple(tensor.shape) for name, tensor in state.items()}, dtypes))
    file, end = Path("model.safetensors"), max((info.end for info in infos.values()), default=0)
    inventory = FileInventory(file, FileStamp(0, 0, end, 0), "safetensors", infos, {}, {})
    return Checkpoint((inventory,), infos), infos


def _infos(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, TensorInfo]]:
    """Tensors in the order of safetensors' own writer: those of wide dtypes first, then by name."""
    end = 0
    for name in sorted(shapes, key=lambda name: (-dtypes[name].itemsize, name)):
        start, end = end, end + torch.Size(shapes[name]).numel() * dtypes[name].itemsize
        yield (
            name,
            TensorInfo(str(dtypes[name]).removeprefix("torch."), shapes[name], Path("model.safetensors"), start, end),
        )
