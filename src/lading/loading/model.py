"""`load_model`: a class, its config and a checkpoint to a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from lading import devices
from lading.catalog import Candidate
from lading.checkpoint import Checkpoint, CheckpointPath, DiskMap, open_checkpoint, read_state_dict
from lading.checkpoint.dtypes import DtypeOf, as_stored, cast_tensor, named_dtype, torch_dtype_of
from lading.checkpoint.quantised import as_the_network_has_it
from lading.collection import collection_put_off
from lading.errors import LadingError
from lading.loading.chosen import find_config, find_network
from lading.loading.gguf_layers import build_with_gguf_layers
from lading.loading.managed import load_managed, vram_rules
from lading.loading.mapped import load_source
from lading.loading.network import (
    build_empty,
    construction,
    fill,
    is_diffusers_model,
    is_transformers_model,
    kept_by_transformers,
    loaded_dtypes,
    named_by_transformers,
    require_exact,
    transformers_config,
    with_current_names,
)
from lading.loading.progress import loading_bar
from lading.loading.streamed import limits_on, load_streamed
from lading.memory.limits import Limits
from lading.memory.wrapping import LayerMap, enable_vram_management

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ModelT = TypeVar("ModelT", bound=torch.nn.Module)
StateDictConverter = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def load_model(
    model_class: type[ModelT] | Candidate | str | None,
    path: CheckpointPath,
    config: Any = None,
    torch_dtype: torch.dtype | str | None = torch.bfloat16,
    device: str | torch.device = "cpu",
    state_dict_converter: StateDictConverter | None = None,
    use_disk_map: bool = False,
    module_map: LayerMap | None = None,
    vram_config: Mapping[str, Any] | None = None,
    vram_limit: float | str | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    quantization_config: Any = None,
    device_mesh: DeviceMesh | None = None,
) -> ModelT:
    """Load a network: built without memory, filled with the checkpoint's tensors, in eval mode.

    No parameter is allocated twice. On the CPU and without a cast, parameters are views of the file. Modules that a
    diffusers class keeps in float32 (`_keep_in_fp32_modules`) are kept.

    Args:
        model_class: any `torch.nn.Module`, such as a class of diffusers or transformers. None or "auto" takes what
            `lading.identify` recognises; one of its candidates picks that network out of a file that holds several.
            Where a file names or lays out the tensors of a known class in another way, they are mapped.
        path: a file, a list of files merged in order, a folder, a glob or an `index.json`.
        config: the constructor's keyword arguments, a `config.json` or its folder, or a transformers config; where the
            class is recognised, whatever differs from the recognised config. None takes the `config.json` beside the
            checkpoint for diffusers and transformers classes, else what the shapes of a known class tell, else the
            defaults.
        torch_dtype: floating-point tensors are cast to it. None keeps the checkpoint's dtypes.
        device: where the network goes.
        state_dict_converter: called with the checkpoint's tensors by name, returns the network's.
        use_disk_map: read only the tensors that the converter, or the network, asks for; of use for files that hold
            several models.
        module_map: class of a layer -> what replaces it, as in `enable_vram_management`; it needs a `vram_config`.
        vram_config: where the weights of replaced layers are, state by state; it computes with `torch_dtype` on
            `device` where it says nothing else. What is offloaded to "disk" is read when it computes.
        vram_limit: in GiB, or such as "8GB", up to which layers are prepared.
        memory_limit: bytes, or such as "8GB", of the device for weights and activations together: weights that do not
            fit are streamed from the checkpoint while the network computes; `lading.manager_of` says how.
        host_memory_limit: of host memory, pinned, in which weights wait for a device; on the CPU the smaller of the two
            limits counts.
        quantization_config: a `diffusers.GGUFQuantizationConfig` keeps the weights of a GGUF file as they are stored,
            in diffusers' layers, which decode them each time they compute. None decodes what is quantised while it is
            read.
        device_mesh: of processes that hold the weights together: each calls this, reads its own rows of every weight
            and gets a network of `torch.distributed.fsdp.fully_shard`, which gathers a block's weights while it
            computes. The mesh says on which devices.

    Raises:
        CheckpointError: a file is damaged or unsafe, or its tensors do not match the network; all names are listed.
        ComponentError: the network cannot be built from the config.
        IdentificationError: no network is recognised where no class is given, or several may be meant.
        MemoryLimitError: the limit is too small; no weight has been read.
        LadingError: the `vram_config` cannot be followed.

    >>> import diffusers, lading
    >>> vae = lading.load_model(diffusers.AutoencoderKL, lading.shipped_model() / "vae", torch_dtype="float32")
    >>> vae.training, vae.dtype
    (False, torch.float32)
    """
    limits = limits_on(device, memory_limit, host_memory_limit)
    dtype = None if torch_dtype is None else named_dtype(torch_dtype)
    rules = vram_rules(module_map, vram_config, vram_limit, dtype, torch.device(device))
    if rules is not None and limits is not None:
        raise LadingError("load_model: memory_limit and vram_config both say where weights are: give one of them")
    if device_mesh is not None and (limits is not None or rules is not None or quantization_config is not None):
        raise LadingError(
            "load_model: device_mesh goes with no memory_limit, vram_config or quantization_config: leave them out"
        )
    path = path if isinstance(path, (str, os.PathLike)) else list(path)
    converts = state_dict_converter is not None  # it gets what is stored
    checkpoint = open_checkpoint(path) if converts else as_the_network_has_it(open_checkpoint(path))
    chosen = find_network(model_class, checkpoint, config, converts)
    found, label, config = cast("type[ModelT]", chosen.model_class), chosen.model_class.__name__, chosen.config

    stored = chosen.source or chosen.checkpoint
    if quantization_config is not None:
        if rules is not None or converts:
            raise LadingError(
                "load_model: quantization_config goes with neither vram_config nor converter: leave it out"
            )
        empty, source = build_with_gguf_layers(found, stored, config, quantization_config, dtype)
        dtype, place = dtype or empty.hf_quantizer.compute_dtype, torch.device(device)
        return load_source(label, found, source, config, dtype, place, limits, use_disk_map, empty)

    def load(dtype: torch.dtype | None, place: str | torch.device) -> ModelT:
        place = torch.device(place)
        if chosen.source is not None:
            return load_source(
                label, found, chosen.source, config, dtype, place, limits, use_disk_map, None, device_mesh
            )
        return load_labelled(
            label, found, checkpoint, config, dtype, place, limits, state_dict_converter, use_disk_map, device_mesh
        )

    if rules is None or module_map is None:
        return load(dtype, device)
    model = load_managed(label, found, stored, config, rules, module_map, vram_limit, state_dict_converter)
    if model is None:
        model = load(rules.computation.dtype, rules.offload.device or "cpu")
        model = enable_vram_management(model, module_map, rules.vram_config(), vram_limit)
    return cast("ModelT", model)


@collection_put_off()
def load_labelled(
    label: str,
    model_class: type[ModelT],
    checkpoint: Checkpoint,
    config: Any,
    torch_dtype: torch.dtype | str | None,
    device: str | torch.device,
    limits: Limits | None,
    state_dict_converter: StateDictConverter | None = None,
    use_disk_map: bool = False,
    mesh: DeviceMesh | None = None,
) -> ModelT:
    """Load a network as `load_model` does, under the name that its progress bar shows."""
    dtype = None if torch_dtype is None else named_dtype(torch_dtype)
    device = torch.device(device)
    source = ", ".join(str(file) for file in checkpoint.files)
    config = find_config(model_class, config, checkpoint)
    if mesh is not None:
        from lading.loading.sharded import load_sharded  # most networks are one process's own

        return load_sharded(label, model_class, checkpoint, config, dtype, mesh, state_dict_converter)
    if limits is not None:
        dtype_of = dtype_rule(model_class, config, dtype, checkpoint)
        return load_streamed(model_class, checkpoint, config, dtype, dtype_of, limits, state_dict_converter)
    converts = state_dict_converter is not None  # it gets what is stored, on the CPU
    if is_transformers_model(model_class) and not converts:
        on_disk = DiskMap(checkpoint) if use_disk_map else None
        return _load_transformers(label, model_class, config, checkpoint, on_disk, dtype, device)
    dtype_of = dtype_rule(model_class, config, dtype, checkpoint)
    built: list[torch.nn.Module] = []

    def build() -> None:
        built.append(build_empty(model_class, config, dtype if is_diffusers_model(model_class) else None))

    tensors: Mapping[str, torch.Tensor]
    if use_disk_map:
        tensors = DiskMap(checkpoint)
    else:
        rule, place = (as_stored, "cpu") if converts else (dtype_of, device)
        with loading_bar(label, checkpoint.nbytes) as on_bytes:
            tensors = read_state_dict(checkpoint, rule, place, on_bytes=on_bytes, meanwhile=build)
    if state_dict_converter is not None:
        tensors = state_dict_converter(tensors)
    if not built:
        build()
    (model,) = built
    if is_diffusers_model(model_class):
        tensors = with_current_names(model, tensors)
    placed = {}
    for name in list(tensors):
        tensor = tensors.pop(name) if isinstance(tensors, dict) else tensors[name]  # a cast frees what it has read
        placed[name] = cast_tensor(tensor, dtype_of(name), device)
    fill(model, placed, source)
    if not is_diffusers_model(model_class):
        for buffer in model.buffers():
            buffer.data = cast_tensor(buffer.data, dtype, device)
    return cast("ModelT", model.to(device).eval())


def dtype_rule(model_class: type, config: Any, dtype: torch.dtype | None, checkpoint: Checkpoint) -> DtypeOf:
    """Return the dtype that each tensor of a checkpoint is read in."""
    if is_transformers_model(model_class):
        if dtype is None or checkpoint.dtypes.keys() <= {str(dtype).removeprefix("torch.")}:
            return as_stored
        kept = kept_by_transformers(build_empty(model_class, config, None), dtype)
        return lambda name: None if kept(name) else dtype  # transformers makes float32 of what it sees as it is stored
    return loaded_dtypes(model_class, dtype)


def _load_transformers(
    label: str,
    model_class: type[ModelT],
    config: Any,
    checkpoint: Checkpoint,
    tensors: Mapping[str, torch.Tensor] | None,
    dtype: torch.dtype | None,
    device: torch.device,
) -> ModelT:
    """Build a transformers network and fill it; where it computes weights from several stored ones, it loads itself.

    Args:
        tensors: of the checkpoint, read on access; None to read them.
    """
    source = ", ".join(str(file) for file in checkpoint.files)
    floats = [kind for kind in map(torch_dtype_of, checkpoint.values()) if kind.is_floating_point]
    dtype = dtype or next(iter(floats), None)
    built: list[Any] = []

    def build() -> None:
        built.append(build_empty(model_class, config, dtype))

    as_it_is = devices.find_device(device) is None and set(floats) <= {dtype}
    with loading_bar(label, checkpoint.nbytes) as on_bytes:
        if as_it_is and tensors is None:
            tensors = read_state_dict(checkpoint, on_bytes=on_bytes, meanwhile=build)
        else:
            build()
        (model,) = built
        stored_names, computed = named_by_transformers(model, {name: name for name in checkpoint})
        itself = bool(computed) or len(stored_names) < len(checkpoint)
        kept = kept_by_transformers(model, dtype)
        dtypes = {old: torch.float32 if kept(new) else dtype for new, old in stored_names.items()}
        if tensors is None:
            tensors = read_state_dict(checkpoint, dtypes.get, "cpu" if itself else device, on_bytes=on_bytes)
    if itself:
        return _loaded_by_transformers(model_class, config, tensors, dtype, source).to(device)
    fill(model, {new: cast_tensor(tensors[old], dtypes[old], device) for new, old in stored_names.items()}, source)
    for part in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        if part is not None:
            part.dtype = dtype
    return cast("ModelT", model.to(device).eval())


def _loaded_by_transformers(
    model_class: type[ModelT],
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    source: str,
) -> ModelT:
    """Let transformers rename and convert a hub checkpoint's keys, tie weights and compute buffers."""
    with construction():
        model, info = model_class.from_pretrained(  # type: ignore[attr-defined] # PreTrainedModel's
            None,
            config=transformers_config(model_class, config),
            state_dict=dict(tensors),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    require_exact(
        model_class.__name__,
        source,
        list(info["missing_keys"]),
        list(info["unexpected_keys"]),
        [(name, tuple(wanted), tuple(found)) for name, found, wanted in info["mismatched_keys"]],
    )
    return model  # type: ignore[no-any-return] # from_pretrained is untyped
