"""Networks filled from a source: built empty, tensors read under the network's own names, in eval mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from lading.checkpoint.dtypes import cast_tensor
from lading.collection import collection_put_off
from lading.loading.network import (
    build_empty,
    fill,
    is_diffusers_model,
    is_transformers_model,
    loaded_dtypes,
)
from lading.loading.progress import loading_bar
from lading.loading.source import Source, SourceMap
from lading.loading.streamed import load_streamed
from lading.memory.limits import Limits

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


@collection_put_off()
def load_source(
    label: str,
    model_class: type[ModelT],
    source: Source,
    config: Any,
    dtype: torch.dtype | None,
    device: torch.device,
    limits: Limits | None = None,
    use_disk_map: bool = False,
    empty: torch.nn.Module | None = None,
    mesh: DeviceMesh | None = None,
) -> ModelT:
    """Load a network as `load_model` does, from tensors that are made of a file's.

    Args:
        empty: the network without weights, where it is built already.

    Raises:
        CheckpointError: names or shapes do not agree with the network's; all are listed.
        MemoryLimitError: the limit is too small.
    """
    if mesh is not None:
        from lading.loading.sharded import load_sharded  # most networks are one process's own

        return load_sharded(label, model_class, source, config, dtype, mesh)
    if is_transformers_model(model_class):
        dtype = dtype or _first_floating(source)
        empty = build_empty(model_class, config, dtype) if empty is None else empty
    dtype_of = loaded_dtypes(model_class if empty is None else empty, dtype)
    if limits is not None:
        return load_streamed(model_class, source, config, dtype, dtype_of, limits, empty=empty)
    built: list[torch.nn.Module] = []

    def build() -> None:
        if empty is not None:
            built.append(empty)
            return
        built.append(build_empty(model_class, config, dtype if is_diffusers_model(model_class) else None))

    tensors: Mapping[str, torch.Tensor]
    if use_disk_map:
        build()
        on_disk = SourceMap(source, dtype_of)
        tensors = {name: on_disk[name].to(device) for name in on_disk}
    else:
        with loading_bar(label, source.nbytes) as on_bytes:
            tensors = source.read(dtype_of, device, on_bytes=on_bytes, meanwhile=build)
    model: Any = built[0]
    fill(model, tensors, str(source))
    if is_transformers_model(model_class):
        model.config.dtype = dtype
    elif not is_diffusers_model(model_class):
        for buffer in model.buffers():
            buffer.data = cast_tensor(buffer.data, dtype, device)
    return cast("ModelT", model.to(device).eval())


def _first_floating(source: Source) -> torch.dtype | None:
    stored = (source.stored_dtype(name) for name in source.origins)
    return next((kind for kind in stored if kind.is_floating_point), None)
