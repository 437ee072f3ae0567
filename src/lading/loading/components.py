"""Parts of a pipeline, each loaded from its own subfolder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lading import events
from lading.checkpoint.dduf_file import is_dduf, packed_names
from lading.checkpoint.files import natural_key
from lading.collection import collection_put_off
from lading.errors import ComponentError, LadingError
from lading.hub import model_folder
from lading.lazy import import_put_off
from lading.loading.bare_component import BareNetwork, find_bare_network, load_bare_network
from lading.loading.configs import class_from_config, read_model_index
from lading.loading.loaders import RARELY_USED, ComponentSpec, Loaded, LoadOptions, find_loader, resolve_class
from lading.loading.record import LoadRecord, format_records
from lading.loading.streamed import limits_on

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("lading.loading")

T = TypeVar("T")


class Components(Mapping[str, Any]):
    """Loaded components, by attribute (`parts.unet`) and by name (`parts["unet"]`).

    Attributes:
        records: how each came to be, in the order of `model_index.json`. `print(components)` shows them as a table.
    """

    def __init__(self, components: Mapping[str, Any], records: Iterable[LoadRecord]) -> None:
        self._components = dict(components)
        self.records = tuple(records)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._components[name]
        except KeyError:
            raise KeyError(f"{name!r} was not loaded: there are {', '.join(self._components)}") from None

    def __getattr__(self, name: str) -> Any:
        components = self.__dict__.get("_components", {})
        if name not in components:
            raise AttributeError(f"{name!r} was not loaded: there are {', '.join(components)}")
        return components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def __repr__(self) -> str:
        return f"Components({', '.join(self._components)})"

    def __str__(self) -> str:
        return format_records(self.records)


@collection_put_off()
def load_component(
    model: str | os.PathLike[str],
    name: str,
    torch_dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    variant: str | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """Load one component of a pipeline: a network, tokenizer, scheduler or processor.

    Args:
        model: a folder in the diffusers layout, a DDUF file, "shapes" for the model that ships here, or a Hugging Face
            id; for a network also a file that holds it, alone or beside others, in any layout that the catalog knows.
        name: the component's name in `model_index.json`, which is its subfolder.
        torch_dtype: of networks. None does what the class's own `from_pretrained` does: float32 in diffusers, the
            dtype that `config.json` states in transformers.
        device: None leaves it on the CPU and touches no device.
        revision: branch, tag or commit, where the model is on a hub.
        variant: such as "fp16" for weights in "model.fp16.safetensors".
        memory_limit: see `load_model`.
        host_memory_limit: see `load_model`.
        subfolder: where in the folder or the repository the pipeline lies.
        token: for private and gated models; None uses the one that is saved.

    Raises:
        ComponentError: the model has no such component, or its class or files are missing.
        DownloadError: the hub could not give it.
        CheckpointError: its weights are damaged, unsafe, or do not match its config.
        MemoryLimitError: the limit is too small; no weight has been read.

    >>> import lading
    >>> lading.load_component("shapes", "scheduler").config.prediction_type
    'v_prediction'
    """
    limits = limits_on(device or "cpu", memory_limit, host_memory_limit)
    if Path(model).is_file() and not is_dduf(model):
        if revision is not None or variant is not None:
            raise ComponentError(f"{os.fspath(model)}: a file has no revision and no variant: leave them out")
        network = find_bare_network(model, name)
        return load_bare(network, LoadOptions(torch_dtype, device, None, limits))[0]
    folder = model_folder(model, [name], revision, variant, subfolder, token)
    return load_by_spec(find_spec(folder, name), LoadOptions(torch_dtype, device, variant, limits))[0]


@collection_put_off()
def load_components(
    model: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    torch_dtype: torch.dtype | str | Mapping[str, torch.dtype | str | None] | None = None,
    device: str | torch.device | Mapping[str, str | torch.device | None] | None = None,
    revision: str | Mapping[str, str | None] | None = None,
    variant: str | Mapping[str, str | None] | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Components:
    """Load several components of a pipeline, one after another.

    `torch_dtype`, `device`, `revision` and `variant` each take one value for all, or a mapping from component names
    with a "default" for the others. A single `variant` is used where a component has it.

    Args:
        model: a folder in the diffusers layout, a DDUF file, "shapes" for the model that ships here, or a Hugging Face
            id.
        names: which; None for all that `model_index.json` names.
        memory_limit: for all networks, which take turns: only the one that computes has its weights in memory.
        host_memory_limit: see `load_model`.
        subfolder: see `load_component`.
        token: see `load_component`.

    Raises:
        ComponentError: the model has no such component, or its class or files are missing.
        DownloadError: the hub could not give it.
        CheckpointError: weights are damaged, unsafe, or do not match their config.
        MemoryLimitError: the limit is too small; no weight has been read.

    >>> import torch, lading
    >>> parts = lading.load_components("shapes", ["vae", "tokenizer"], torch_dtype={"vae": torch.float16})
    >>> parts.vae.dtype, len(parts)
    (torch.float16, 2)
    """
    find = partial(model_folder, model, subfolder=subfolder, token=token)
    jobs = _jobs(find, names, {"torch_dtype": torch_dtype, "device": device, "revision": revision, "variant": variant})
    devices = {str(options.device or "cpu") for _, options in jobs}
    limits = {device: limits_on(device, memory_limit, host_memory_limit) for device in devices}
    jobs = [(spec, replace(options, limits=limits[str(options.device or "cpu")])) for spec, options in jobs]
    with import_put_off(RARELY_USED):
        for spec, _ in jobs:
            resolve_class(spec)  # an unknown class is told before anything is read
        return load_in_turn([partial(load_by_spec, spec, options) for spec, options in jobs])


def load_in_turn(jobs: Iterable[Callable[[], tuple[Any, LoadRecord]]]) -> Components:
    """Load components one after another: each reads at the disk's rate, and Python builds one at a time anyway."""
    loaded = [job() for job in jobs]
    return Components({record.name: component for component, record in loaded}, [record for _, record in loaded])


def _jobs(
    find: Callable[..., Path], names: Iterable[str] | None, options: Mapping[str, Any]
) -> list[tuple[ComponentSpec, LoadOptions]]:
    """Find each component's files, and pick its own out of options that are one for all or a mapping."""
    revision, variant = options["revision"], options["variant"]
    usual = (for_component(revision, "default"), for_component(variant, "default"))
    wanted = None if names is None else list(dict.fromkeys(names))
    folder = find(wanted, *usual)
    wanted = wanted if wanted is not None else list(read_model_index(folder))
    _require_known(wanted, options)
    jobs = []
    for name in wanted:
        own = (for_component(revision, name), for_component(variant, name))
        spec = find_spec(folder if own == usual else find([name], *own), name)
        chosen = own[1] if isinstance(variant, Mapping) or _has_variant(spec.folder, own[1]) else None
        dtype, device = (for_component(options[option], name) for option in ("torch_dtype", "device"))
        jobs.append((spec, LoadOptions(dtype, device, chosen)))
    if isinstance(variant, str) and jobs and all(job.variant is None for _, job in jobs):
        raise _no_variant(folder, variant)
    return jobs


def variants_in(folder: Path, variant: str | None) -> dict[str, str | None]:
    """Return the variant of each component's weights where one is asked for of a pipeline: some may have no such files.

    Args:
        folder: in the diffusers layout.

    Raises:
        ComponentError: none has.
    """
    names = [name for name in read_model_index(folder) if (folder / name).is_dir()]
    found = {name: variant if _has_variant(folder / name, variant) else None for name in names}
    if variant is not None and not any(found.values()):
        raise _no_variant(folder, variant)
    return found


def _no_variant(folder: Path, variant: str) -> ComponentError:
    return ComponentError(f"{folder}: no component has weights of variant {variant!r}: leave it out")


def find_spec(folder: Path, name: str) -> ComponentSpec:
    """Return what a pipeline's folder says of a component.

    Raises:
        ComponentError: it has none of this name, or not its files.
    """
    if not name.isidentifier():
        raise ComponentError(f"{folder}: {name!r} is not the name of a component")
    place = folder / name
    if (folder / "model_index.json").is_file():
        components = read_model_index(folder)
        if name not in components:
            raise ComponentError(f"{folder}: there is no component {name!r}: it has {', '.join(components)}")
        library, class_name = components[name]
    else:
        library, class_name = class_from_config(place) or _unknown_class(folder, name)
    if not place.is_dir():
        raise ComponentError(f"{place}: component {name!r} has no files: fetch this folder")
    return ComponentSpec(name, library, class_name, place)


def _unknown_class(folder: Path, name: str) -> NoReturn:
    held = sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=natural_key)
    raise ComponentError(
        f"{folder}: there is no model_index.json, and {name!r} has no config that names its class: "
        f"the folder has {', '.join(held) or 'no subfolders'}"
    )


def load_by_spec(spec: ComponentSpec, options: LoadOptions) -> tuple[Any, LoadRecord]:
    """Load a component with the loader of its name."""
    label, loader = find_loader(spec.name)
    return load_recorded(spec, label, lambda: loader(spec, resolve_class(spec), options))


def load_bare(network: BareNetwork, options: LoadOptions) -> tuple[Any, LoadRecord]:
    """Load a network of a bare file."""
    library, _, class_name = str(network.candidate.model_class).rpartition(".")
    spec = ComponentSpec(network.name, library, class_name, network.file.checkpoint.files[0])
    return load_recorded(spec, "bare file", lambda: load_bare_network(network, options))


def load_recorded(spec: ComponentSpec, label: str, load: Callable[[], Loaded]) -> tuple[Any, LoadRecord]:
    """Load a component, and note how that went.

    Args:
        label: what the record calls the loader.

    Raises:
        ComponentError: it cannot be loaded, for whatever reason the library of its class gives.
    """
    start = time.perf_counter()
    try:
        loaded = load()
    except LadingError:
        raise
    except Exception as error:
        raise ComponentError(
            f"{spec.folder}: component {spec.name!r} ({spec.class_name}) cannot be loaded: {error}"
        ) from error
    end = time.perf_counter()
    weights, milliseconds = weights_of(loaded.component), 1000 * (end - start)
    record = LoadRecord(spec.name, label, spec.qualified_class, loaded.files, *weights, milliseconds)
    _log.info("%s", record)
    events.tell("load", spec.name, loaded.component, start, end, record.nbytes)
    return loaded.component, record


def weights_of(component: Any) -> tuple[int, int, str | None, str | None]:
    """Return how many tensors a component has, their bytes, and the dtype and device of most of these bytes."""
    import torch

    if not isinstance(component, torch.nn.Module):
        return 0, 0, None, None
    tensors = [*component.parameters(), *component.buffers()]
    shares: dict[tuple[str, str], int] = {}
    for tensor in tensors:
        key = (str(tensor.dtype).removeprefix("torch."), str(tensor.device))
        shares[key] = shares.get(key, 0) + tensor.nbytes
    dtype, device = max(shares, key=lambda key: shares[key], default=(None, None))
    return len(tensors), sum(shares.values()), dtype, device


def for_component(value: T | Mapping[str, T | None] | None, name: str) -> T | None:
    """Return what an option is for a component, given one value for all or a mapping."""
    if isinstance(value, Mapping):
        return value.get(name, value.get("default"))
    return value


def _require_known(names: Iterable[str], options: Mapping[str, object]) -> None:
    known = {*names, "default"}
    for option, value in options.items():
        strange = [name for name in value if name not in known] if isinstance(value, Mapping) else []
        if strange:
            raise ComponentError(f"{option} names {', '.join(map(repr, strange))}: loaded are {', '.join(names)}")


def _has_variant(folder: Path, variant: str | None) -> bool:
    names = (*packed_names(folder), *(file.name for file in folder.iterdir()))
    return variant is not None and any(f".{variant}." in name or f".{variant}-" in name for name in names)
