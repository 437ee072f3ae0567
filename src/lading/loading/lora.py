"""`load_lora`: a LoRA file of any dialect onto a pipeline or a network, all of it or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from lading.catalog.lora import Lora, LoraMatch, LoraSettings, Touched, find_bases, lora_settings
from lading.catalog.lora_bases import MATCHES, LoraBase, shipped_lora_bases
from lading.catalog.lora_names import DENOISER, DORA, LORA, LoraContent, LoraModule, sort_lora
from lading.catalog.recognition import identify_checkpoint
from lading.catalog.registry import known_families
from lading.checkpoint import Checkpoint, CheckpointPath, open_checkpoint, read_state_dict
from lading.errors import ComponentError, IdentificationError
from lading.loading.lora_conversion import Conversion, convert
from lading.loading.lora_injection import activate, active_adapters, adapted_layers, inject, remove
from lading.loading.lora_networks import AdaptedNetwork, LoraTarget

_MOST_FAULTS = 5
_DENOISERS = ("transformer", "unet")
_NO_PAIRS = {
    "LoHa": "Hadamard products",
    "LoKr": "Kronecker products",
    "OFT": "rotations of the weights",
    "LoRA with a Tucker core": "three factors for a convolution",
}
"""What other methods put in the place of pairs of matrices."""


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that takes part in what a pipeline, or a network, computes.

    Attributes:
        name: of the adapter, as diffusers' `set_adapters` and `delete_adapters` want it.
        dialect: of the file.
        made_for: the base, in words.
        layers: component -> how many layers the LoRA changes.
        unused: tensors of the file that were left out, as they are zero and change nothing.
    """

    name: str
    file: Path
    dialect: str
    made_for: str
    scale: float
    layers: Mapping[str, int]
    unused: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "file": str(self.file), "unused": list(self.unused)}

    def __str__(self) -> str:
        layers = ", ".join(f"{count} layers of the {component}" for component, count in self.layers.items())
        return f"{self.file.name}  {self.dialect}, for {self.made_for}: {layers}, scale {self.scale:g}"


def load_lora(module_or_pipeline: Any, file: CheckpointPath, scale: float = 1.0, name: str | None = None) -> LoadedLora:
    """Load a LoRA onto a pipeline, or onto a network alone; several add up, each with its scale.

    Every tensor of the file finds its layer, or nothing is loaded. The adapters are PEFT's, frozen, and run beside the
    weights: these stay as they are, and may be streamed under a memory limit. In a pipeline of diffusers,
    `set_adapters`, `delete_adapters` and their like go on from there.

    Args:
        module_or_pipeline: a pipeline of diffusers, or one network of diffusers, transformers or your own.
        file: of kohya's tools, diffusers, PEFT, ComfyUI, XLabs, Black Forest Labs or DiffSynth; or its folder.
        scale: by which alpha / rank is multiplied.
        name: of the adapter; by default that of the file.

    Raises:
        CheckpointError: the file is damaged, unsafe or not a checkpoint.
        IdentificationError: it is no LoRA.
        ComponentError: it is for another model, or of a kind that cannot be loaded; tensors without a layer are named.

    >>> import tempfile, lading
    >>> from peft import LoraConfig
    >>> unet = lading.load_component("shapes", "unet")
    >>> unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    >>> folder = tempfile.mkdtemp()
    >>> unet.save_lora_adapter(folder)
    >>> lading.load_lora(lading.load_pipeline("shapes"), folder, scale=0.5).layers
    {'denoiser': 14}
    """
    checkpoint = open_checkpoint(file)
    content, lora = sort_lora(checkpoint), identify_checkpoint(checkpoint).lora
    source = ", ".join(str(one) for one in checkpoint.files)
    if lora is None or content is None:
        raise IdentificationError(f"{source}: no LoRA: `lading inspect` says what it is")
    target = _target(module_or_pipeline)
    _require_pairs(source, lora)
    _require_base(source, lora, content, checkpoint, target)
    settings = lora_settings(checkpoint)
    _require_names(source, settings)
    found = convert(target, content, lambda: read_state_dict(checkpoint), settings)
    name = _free_name(target, name, checkpoint.files[0].stem)
    if _is_control(target, lora, found):
        _add_control(source, target, read_state_dict(checkpoint), found, name, scale)
    elif found.faults or found.whole or not any(found.pairs.values()):
        raise ComponentError(f"{source}: {_why_not(lora, content, found)}")
    else:
        _add(source, target, found, name, scale, any(one.by_root for one in settings.values()))
    held = {component: adapted_layers(network.module) for component, network in target.networks.items()}
    layers = {component: len(adapters[name]) for component, adapters in held.items() if name in adapters}
    return LoadedLora(name, checkpoint.files[0], lora.dialect, lora.made_for, scale, layers, found.unused)


def _target(module_or_pipeline: Any) -> LoraTarget:
    """What adapters can be loaded onto.

    Raises:
        ComponentError: it is no network, and no pipeline with networks.
    """
    if isinstance(module_or_pipeline, torch.nn.Module):
        network = AdaptedNetwork(type(module_or_pipeline).__name__, module_or_pipeline)
        is_encoder = network.known is not None and network.known[1].component.startswith("text_encoder")
        loader = _loader_of(network)
        component = "text_encoder" if is_encoder else DENOISER
        return LoraTarget(network.label, {component: network}, loader, _denoiser_of(loader))
    label = type(module_or_pipeline).__name__
    parts = getattr(module_or_pipeline, "components", None)
    modules = {name: part for name, part in (parts or {}).items() if isinstance(part, torch.nn.Module)}
    if not modules:
        raise ComponentError(f"{label} takes no LoRA: it is no network, and no pipeline with networks")
    denoiser = next((name for name in _DENOISERS if name in modules), None)
    networks = {
        DENOISER if name == denoiser else name: AdaptedNetwork(type(part).__name__, part)
        for name, part in modules.items()
    }
    pipeline_class = type(module_or_pipeline)
    loader = pipeline_class if hasattr(pipeline_class, "lora_state_dict") else None
    return LoraTarget(label, networks, loader, _denoiser_of(loader), module_or_pipeline)


def _loader_of(network: AdaptedNetwork) -> Any:
    """The class of the first published pipeline of a network, where diffusers loads LoRAs onto that."""
    if network.known is None:
        return None
    family, architecture = network.known
    for repository in (
        one for known in known_families() if known.name == family for one in known.repositories.values()
    ):
        classes = [component.model_class for component in repository.components.values()]
        pipeline = getattr(diffusers, repository.pipeline_class.rpartition(".")[2], None)
        if architecture.model_class in classes and hasattr(pipeline, "lora_state_dict"):
            return pipeline
    return None


def _denoiser_of(loader: Any) -> str:
    return str(getattr(loader, "transformer_name", None) or getattr(loader, "unet_name", None) or "transformer")


def _require_pairs(source: str, lora: Lora) -> None:
    if lora.method not in (LORA, DORA):
        raise ComponentError(
            f"{source}: a {lora.method}: {_NO_PAIRS.get(lora.method, 'something else')} instead of a pair of matrices "
            "for each layer, and lading adds only such pairs: merge it into the model with the tool that made it"
        )


def _require_names(source: str, settings: Mapping[str, LoraSettings]) -> None:
    expressions = [end for one in settings.values() for end in one.expressions]
    if expressions:
        raise ComponentError(
            f"{source}: its config gives alphas to layers by expressions such as {expressions[0]!r}, which lading does "
            "not evaluate: name the layers in alpha_pattern"
        )


def _require_base(source: str, lora: Lora, content: LoraContent, checkpoint: Checkpoint, target: LoraTarget) -> None:
    """Refuse a LoRA that fits a network better which is not the one that it is loaded onto.

    Raises:
        ComponentError: it does.
    """
    shapes = {name: info.shape for name, info in checkpoint.items()}
    groups: dict[str, list[LoraModule]] = {}
    for (component, _), module in content.modules.items():
        groups.setdefault(component, []).append(module)
    for component, modules in groups.items():
        touched = Touched.of(modules, shapes)
        bases = find_bases(component, touched)
        networks = [one for name, one in target.networks.items() if component in ("", name)]
        if not bases or not networks or _may_control(target, bases):
            continue
        here = [touched.match(base) for network in networks for base in network.bases()]
        best = min((MATCHES.index(match) for match in here if match is not None), default=len(MATCHES))
        if best > MATCHES.index(bases[0].match):
            raise ComponentError(
                f"{source}: this LoRA is for {lora.made_for}, and {target.label} is {_what(networks[0])}: "
                "load it onto the model that it was made for"
            )


def _what(network: AdaptedNetwork) -> str:
    """What a network is, in words."""
    own = next(network.bases(), None)
    if network.known is None or own is None:
        return f"a {network.label} that the catalog does not know"
    same = (base for base in shipped_lora_bases() if _is_same(own, base))
    models = next((base.models for base in same if base.models), ())
    return f"{models[0]} ({network.family})" if models else f"a {network.label} ({network.family}) of another size"


def _is_same(one: LoraBase, other: LoraBase) -> bool:
    return (one.model_class, one.layout, one.modules) == (other.model_class, other.layout, other.modules)


def _free_name(target: LoraTarget, name: str | None, stem: str) -> str:
    """A name that no network has an adapter of; PEFT allows no dots."""
    taken = {one for network in target.networks.values() for one in adapted_layers(network.module)}
    if name is not None:
        if "." in name:
            raise ComponentError(f"an adapter cannot be called {name!r}: PEFT allows no dots: use another name")
        if name in taken:
            raise ComponentError(f"there is an adapter {name!r} already: use another name, or delete it first")
        return name
    plain = re.sub(r"[^0-9A-Za-z_-]", "_", stem) or "lora"
    return next(one for one in (plain, *(f"{plain}_{n}" for n in range(2, len(taken) + 3))) if one not in taken)


def _why_not(lora: Lora, content: LoraContent, found: Conversion) -> str:
    if found.whole and not found.faults:
        names = ", ".join(list(next(iter(found.whole.values())))[:_MOST_FAULTS])
        return (
            f"a control LoRA, which replaces parameters of the network itself ({names}, ...): load it onto a pipeline "
            "of diffusers that takes such"
        )
    if not found.faults:
        return "all of it is zero: it would change nothing"
    total = len(content.keys) + len(content.rest)
    listed = ", ".join(map(str, found.faults[:_MOST_FAULTS])) + (", ..." if len(found.faults) > _MOST_FAULTS else "")
    return (
        f"{len(found.faults)} of its {total} tensors have no place: {listed}: this LoRA is for {lora.made_for}: load "
        "it onto the model that it was made for"
    )


def _add(source: str, target: LoraTarget, found: Conversion, name: str, scale: float, by_root: bool) -> None:
    """Add the pairs to their layers; all of them or none."""
    modules = {component: target.networks[component].module for component, pairs in found.pairs.items() if pairs}
    for component, module in modules.items():
        if any(pair.magnitude is not None for pair in found.pairs[component].values()):
            _require_unstreamed(source, module, "a DoRA, which computes with the layers' weights")
    active = {component: active_adapters(module) for component, module in modules.items()}
    try:
        for component, module in modules.items():
            inject(module, found.pairs[component], name, by_root)
    except BaseException as error:
        for module in modules.values():
            remove(module, name)
        if isinstance(error, (ValueError, RuntimeError)):
            raise ComponentError(f"{source}: PEFT cannot add it to {target.label}: {error}") from error
        raise
    for component, module in modules.items():
        activate(module, active[component], name, scale)


def _may_control(target: LoraTarget, bases: tuple[LoraMatch, ...]) -> bool:
    """Whether a LoRA is for a published variant of the target's denoiser, and diffusers lets it make one of it.

    The classes that do list the norms that a LoRA may replace.
    """
    network = target.networks.get(DENOISER)
    takes = target.pipeline is not None and hasattr(target.loader, "_control_lora_supported_norm_keys")
    if not takes or network is None or network.known is None:
        return False
    return any(base.model_class == network.known[1].model_class and base.match in MATCHES[:2] for base in bases)


def _is_control(target: LoraTarget, lora: Lora, found: Conversion) -> bool:
    """Whether a LoRA widens layers of the target or replaces its parameters, may do so, and does nothing else amiss."""
    bases = tuple(base for part in lora.parts for base in part.bases)
    changes = bool(found.whole or found.faults) and all(fault.layer for fault in found.faults)
    return changes and {*found.whole} <= {DENOISER} and _may_control(target, bases)


def _add_control(
    source: str,
    target: LoraTarget,
    tensors: Mapping[str, torch.Tensor],
    found: Conversion,
    name: str,
    scale: float,
) -> None:
    """Let diffusers load a control LoRA, and look whether all of it is there."""
    module = target.networks[DENOISER].module
    _require_unstreamed(source, module, "a control LoRA, which changes the network's own weights")
    active = active_adapters(module)
    wanted = {*found.pairs.get(DENOISER, {}), *(fault.layer for fault in found.faults)}
    try:
        target.pipeline.load_lora_weights(dict(tensors), adapter_name=name)
        lost = sorted(wanted - adapted_layers(module).get(name, set()))
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ComponentError(f"{source}: no LoRA for {target.label}: {error}") from error
    if lost:
        remove(module, name)
        raise ComponentError(f"{source}: {target.label} has no place for {', '.join(lost[:_MOST_FAULTS])}")
    activate(module, active, name, scale)


def _require_unstreamed(source: str, module: torch.nn.Module, what: str) -> None:
    if "lading_manager" in module.__dict__:
        raise ComponentError(
            f"{source}: {what}, and {type(module).__name__} is streamed under a memory limit: load the model without "
            "a limit"
        )
