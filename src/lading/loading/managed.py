"""Networks whose layers are where `vram_config` says: built empty, read in the dtype that they are stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lading.checkpoint import Checkpoint
from lading.errors import CheckpointError, LadingError
from lading.loading.network import build_empty, fill, kept_in_float32_by_its_library
from lading.loading.progress import loading_bar
from lading.loading.source import Source, SourceMap
from lading.loading.streamed import named_as_the_network
from lading.memory.rules import Rules, parse_rules
from lading.memory.wrapping import LayerMap, enable_vram_management


def vram_rules(
    module_map: LayerMap | None,
    vram_config: Mapping[str, Any] | None,
    vram_limit: float | str | None,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Rules | None:
    """Return the rules that the arguments of `load_model` state, or None where they ask for no management.

    Args:
        dtype: in which to compute, where the `vram_config` does not say.
        device: likewise.

    Raises:
        LadingError: one argument is there without another that it needs, or the `vram_config` cannot be followed.
    """
    given = {key: value for key, value in (vram_config or {}).items() if value is not None}
    if module_map is None:
        for name, value in (("vram_limit", vram_limit), ("vram_config", _offload_of(given))):
            if value is not None:
                raise LadingError(
                    f"load_model: {name}={value!r} without a module_map: say which layers to replace, such as "
                    "module_map={torch.nn.Linear: lading.AutoWrappedLinear}"
                )
        return None
    if not given:
        raise LadingError("load_model: a module_map without a vram_config: say where the layers' weights are")
    return parse_rules({"computation_dtype": dtype, "computation_device": device, **given})


def load_managed(
    label: str,
    model_class: type[torch.nn.Module],
    source: Source | Checkpoint,
    config: Any,
    rules: Rules,
    module_map: LayerMap,
    vram_limit: float | str | None,
    state_dict_converter: Callable[[Any], Mapping[str, Any]] | None,
) -> torch.nn.Module | None:
    """Load a network and put it under VRAM management; offloaded to the disk, no weight is read.

    Returns:
        None where it has to be loaded as a whole first: weights are offloaded to memory, and made of what is stored.

    Raises:
        CheckpointError: the tensors do not match the network, or weights that stay on the disk would have to be made
            of what is stored there.
    """
    computation = rules.computation.dtype
    model = build_empty(model_class, config, computation)
    try:
        if isinstance(source, Checkpoint):
            source = Source.of(source, named_as_the_network(model, source, state_dict_converter))
    except CheckpointError:
        if rules.needs_disk:
            raise
        return None
    kept = kept_in_float32_by_its_library(model, computation)
    disk_map = SourceMap(source) if rules.needs_disk else None
    if rules.offload.on_disk:
        assert disk_map is not None
        buffers = {name for name, _ in model.named_buffers()}
        tensors = {}
        for name in source.origins:
            dtype = source.dtype(name, torch.float32 if kept(name) else computation)
            if name in buffers:
                tensors[name] = disk_map.read(name, dtype)
            else:
                tensors[name] = torch.empty(source.shape(name), dtype=dtype, device="meta")
    else:
        assert rules.offload.device is not None
        with loading_bar(label, source.nbytes) as on_bytes:
            tensors = source.read(_dtypes(model, rules, kept), rules.offload.device, on_bytes=on_bytes)
    fill(model, tensors, str(source))
    del tensors
    return enable_vram_management(model.eval(), module_map, rules.vram_config(), vram_limit, disk_map)


def _dtypes(model: torch.nn.Module, rules: Rules, kept: Callable[[str], bool]) -> Callable[[str], torch.dtype | None]:
    """Return the dtype in which each tensor is offloaded: buffers are not stored in fewer bits than they compute in."""
    buffers = {name for name, _ in model.named_buffers()}

    def dtype_of(name: str) -> torch.dtype | None:
        if kept(name):
            return torch.float32
        return rules.computation.dtype if name in buffers else rules.offload.dtype

    return dtype_of


def _offload_of(given: Mapping[str, Any]) -> Any:
    return given.get("offload_device", given.get("offload_dtype"))
