"""The registry of loaders: a component's config name -> the loader that makes the object.

A loader is chosen by the name that `model_index.json` gives the component ("text_encoder_2" goes by "text_encoder");
a component that nobody registered goes to the generic loader, which asks the class what it can do. To look at the
registry takes no torch: loaders import it when they load.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lading.checkpoint import open_checkpoint
from lading.checkpoint.dduf_file import packed_weights
from lading.checkpoint.files import find_in_folder
from lading.checkpoint.quantised import as_the_network_has_it
from lading.errors import ComponentError
from lading.lazy import import_put_off
from lading.loading.configs import read_config

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from lading.memory.limits import Limits


RARELY_USED = "scipy.stats"
"""The schedulers of diffusers import it, for one of their options: a tenth of the time to a small picture."""


@dataclass(frozen=True)
class ComponentSpec:
    """One component as a model's files describe it.

    Attributes:
        name: such as "unet".
        library: "diffusers", "transformers", or the name of one of diffusers' pipeline modules.
        class_name: such as "UNet2DConditionModel".
        folder: where its config and weights lie.
    """

    name: str
    library: str
    class_name: str
    folder: Path

    @property
    def qualified_class(self) -> str:
        return f"{self.library}.{self.class_name}"

    def __str__(self) -> str:
        return f"{self.name}: {self.qualified_class} in {self.folder}"


@dataclass(frozen=True)
class LoadOptions:
    """What a caller asked for one component.

    Attributes:
        torch_dtype: a dtype or its name; None does what the class's own `from_pretrained` does.
        device: None leaves the component on the CPU and touches no device.
        variant: such as "fp16" for weights in "model.fp16.safetensors".
        limits: that a network shares with others; None for none.
        mesh: of processes that hold a network together; None for one's own. See `load_model`.
    """

    torch_dtype: Any = None
    device: Any = None
    variant: str | None = None
    limits: Limits | None = None
    mesh: DeviceMesh | None = None


@dataclass(frozen=True)
class Loaded:
    """A loader's product.

    Attributes:
        files: the files that the component was made of.
    """

    component: Any
    files: tuple[Path, ...] = field(default=())


Loader: TypeAlias = Callable[[ComponentSpec, type, LoadOptions], Loaded]

_LOADERS: dict[str, tuple[str, Loader]] = {}


def register_loader(name: str, loader: Loader, label: str | None = None) -> None:
    """Register the loader of components of a name; a later registration replaces an earlier one.

    Args:
        name: the name in `model_index.json`; it also serves "name_2", "name_3" and so on.
        loader: called with the spec, the class that it names and the options.
        label: what the table of the loading path calls it; the name by default.
    """
    _LOADERS[name] = (label or name, loader)


def find_loader(name: str) -> tuple[str, Loader]:
    """Return the label and the loader for a component's name."""
    return _LOADERS.get(name) or _LOADERS.get(re.sub(r"_\d+$", "", name)) or ("generic", load_generic)


def resolve_class(spec: ComponentSpec) -> type:
    """Import the class of a component.

    Only diffusers, its pipeline modules and transformers are imported: a file may not name other code to run.

    Raises:
        ComponentError: the library is another, or has no such class.
    """
    if spec.library in ("diffusers", "transformers"):
        module: Any = importlib.import_module(spec.library)
    else:
        pipelines = importlib.import_module("diffusers.pipelines")
        module = getattr(pipelines, spec.library, None) if spec.library.isidentifier() else None
        if module is None:
            raise ComponentError(
                f"{spec.folder}: component {spec.name!r} asks for the library {spec.library!r}: only diffusers and "
                "transformers are imported; load that component yourself and pass it to the pipeline"
            )
    found = getattr(module, spec.class_name, None)
    if not isinstance(found, type):
        raise ComponentError(
            f"{spec.folder}: component {spec.name!r} names {spec.qualified_class}, which the installed "
            f"{spec.library} {getattr(module, '__version__', '')} does not have: upgrade it, or correct the name"
        )
    return found


def find_pipeline_class(name: object, source: object) -> Any:
    """Return a pipeline class of diffusers.

    Args:
        source: where the name comes from, for the message.

    Raises:
        ComponentError: diffusers has no such class.
    """
    import diffusers

    with import_put_off(RARELY_USED):
        found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ComponentError(
            f"{source}: names the pipeline {name!r}, which diffusers {diffusers.__version__} does not have: upgrade "
            "diffusers, or load the components alone"
        )
    return found


def load_network(spec: ComponentSpec, model_class: type, options: LoadOptions) -> Loaded:
    """Load a network as `load_model` does from the weights in its folder."""
    import torch

    from lading.loading.model import load_labelled
    from lading.loading.network import is_diffusers_model, is_transformers_model
    from lading.loading.quantised import is_for_its_library

    if not issubclass(model_class, torch.nn.Module):
        raise ComponentError(
            f"{spec.folder}: component {spec.name!r} is a {spec.qualified_class}, which is no network: "
            "correct its class in model_index.json"
        )
    config = read_config(spec.folder / "config.json")
    dtype = options.torch_dtype
    if dtype is None:
        dtype = "float32" if is_diffusers_model(model_class) else config.get("dtype", config.get("torch_dtype"))
    packed = packed_weights(spec.folder, options.variant)
    stem = "diffusion_pytorch_model" if is_diffusers_model(model_class) else None
    stored = packed or open_checkpoint(find_in_folder(spec.folder, stem, options.variant).files)
    if "quantization_config" in config:
        where, limited = f"{spec.folder}: component {spec.name!r}", options.limits is not None or packed is not None
        limited = limited or options.mesh is not None
        if is_for_its_library(where, model_class, config, stored, limited):
            return _load_quantized(spec, model_class, options)
        config = {key: value for key, value in config.items() if key != "quantization_config"}
        dtype = options.torch_dtype
    checkpoint = as_the_network_has_it(stored)
    device, limits = options.device or "cpu", options.limits
    model: torch.nn.Module = load_labelled(
        spec.name, model_class, checkpoint, config, dtype, device, limits, mesh=options.mesh
    )
    if is_transformers_model(model_class):
        _load_generation_config(spec, model)
    _name_origin(model, spec.folder)
    return Loaded(model, (spec.folder / "config.json", *checkpoint.files))


def load_from_pretrained(spec: ComponentSpec, component_class: type, _options: LoadOptions) -> Loaded:
    """Load a component without weights (tokenizer, scheduler, processor) by its own `from_pretrained`."""
    from lading.loading.network import construction

    files = tuple(sorted(file for file in spec.folder.iterdir() if file.is_file()))
    if not files:
        raise ComponentError(f"{spec.folder}: component {spec.name!r} has no files: fetch this folder")
    _require_vocabulary(spec, component_class)
    with construction():
        component = component_class.from_pretrained(spec.folder)  # type: ignore[attr-defined] # generic checks it
    return Loaded(component, files)


def load_generic(spec: ComponentSpec, component_class: type, options: LoadOptions) -> Loaded:
    """Load a component that nobody registered: a network by its weights, anything else by `from_pretrained`."""
    from lading.loading.network import is_diffusers_model, is_transformers_model

    if is_diffusers_model(component_class) or is_transformers_model(component_class):
        return load_network(spec, component_class, options)
    if not callable(getattr(component_class, "from_pretrained", None)):
        raise ComponentError(
            f"{spec.folder}: component {spec.name!r} is a {spec.qualified_class}, which has no from_pretrained: "
            "register a loader for its name (lading.loading.register_loader)"
        )
    return load_from_pretrained(spec, component_class, options)


def _require_vocabulary(spec: ComponentSpec, component_class: type) -> None:
    """Refuse a tokenizer without a vocabulary: transformers makes one of no words, which turns any text to nothing."""
    names = getattr(component_class, "vocab_files_names", None)
    if not names:
        return
    known = {*names.values(), "tokenizer.json"} - {"tokenizer_config.json"}
    if not any((spec.folder / name).is_file() for name in known):
        raise ComponentError(
            f"{spec.folder}: component {spec.name!r} has no vocabulary: fetch one of {', '.join(sorted(known))}"
        )


def _load_quantized(spec: ComponentSpec, model_class: type, options: LoadOptions) -> Loaded:
    """Quantised weights belong to the library's quantizers: the class loads itself."""
    from lading.checkpoint.dtypes import named_dtype
    from lading.loading.network import construction

    dtype = None if options.torch_dtype is None else named_dtype(options.torch_dtype)
    with construction():
        model = model_class.from_pretrained(  # type: ignore[attr-defined] # both libraries' networks have it
            spec.folder, variant=options.variant, dtype=dtype
        )
    model = model.to(options.device) if options.device is not None else model
    return Loaded(model, tuple(sorted(file for file in spec.folder.iterdir() if file.is_file())))


def _load_generation_config(spec: ComponentSpec, model: Any) -> None:
    if model.can_generate() and (spec.folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(spec.folder)


def _name_origin(model: Any, folder: Path) -> None:
    """Note where a network came from, as both libraries do."""
    from lading.loading.network import is_diffusers_model, is_transformers_model

    if is_diffusers_model(type(model)):
        model.register_to_config(_name_or_path=str(folder))
    elif is_transformers_model(type(model)):
        model.config._name_or_path = model.name_or_path = str(folder)


for _name in ("unet", "transformer", "vae", "text_encoder", "image_encoder", "controlnet", "prior", "safety_checker"):
    register_loader(_name, load_network, "network")
for _name in ("tokenizer", "scheduler"):
    register_loader(_name, load_from_pretrained)
for _name in ("feature_extractor", "image_processor", "processor"):
    register_loader(_name, load_from_pretrained, "processor")
