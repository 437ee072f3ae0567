"""What takes adapters: the layers of a network, and what files of each layout call them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lading.catalog.architecture import Architecture
from lading.catalog.change import Change, Same, Shape, UnfitShapeError
from lading.catalog.lora_bases import LoraBase, modules_by_pattern
from lading.catalog.lora_names import names_in_networks
from lading.catalog.registry import architecture_of
from lading.errors import CheckpointError

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Place:
    """Where a module of a file's layout is in the network.

    Attributes:
        layers: of the network, that it is made into.
        change: of the weight, on its way there.
        shape: of the weight in the file.
    """

    layers: tuple[str, ...]
    change: Change
    shape: Shape


@dataclass(frozen=True)
class Layout:
    """What files of a layout call a network's modules.

    Attributes:
        places: by dotted name.
    """

    places: Mapping[str, Place]

    @cached_property
    def _flat(self) -> Mapping[str, Place]:
        return {name.replace(".", "_"): place for name, place in self.places.items()}

    def find(self, module: str, is_flat: bool) -> Place | None:
        """Return where a module is; None if the network has none of this name."""
        if is_flat:
            return self._flat.get(module)
        return next((self.places[name] for name in names_in_networks(module) if name in self.places), None)


@dataclass(frozen=True)
class AdaptedNetwork:
    """A network that adapters are loaded onto.

    Attributes:
        label: what messages call it, such as "UNet2DConditionModel".
        module: with or without adapters.
    """

    label: str
    module: torch.nn.Module

    @cached_property
    def layers(self) -> dict[str, Shape]:
        """Layer that can be adapted -> the shape of its weight, whatever way it is stored in."""
        return {name: shape for name, layer in _base_layers(self.module) if (shape := _weight_shape(layer)) is not None}

    @cached_property
    def parameters(self) -> dict[str, Shape]:
        """Parameter -> its shape as it is stored; without those of adapters."""
        names = ((name.replace(".base_layer.", "."), tuple(one.shape)) for name, one in self.module.named_parameters())
        return {name: shape for name, shape in names if ".lora_" not in name}

    @cached_property
    def known(self) -> tuple[str, Architecture] | None:
        """Its family and architecture, if the catalog has them."""
        return next((found for kind in type(self.module).__mro__ if (found := architecture_of(kind))), None)

    @property
    def family(self) -> str:
        """Of the catalog; "" where that has none."""
        return self.known[0] if self.known is not None else ""

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """By name; that of the network's own names comes first."""
        own = Layout({name: Place((name,), Same(), shape) for name, shape in self.layers.items()})
        if self.known is None:
            return {"": own}
        architecture = self.known[1]
        others = (*architecture.layouts, *architecture.lora_layouts)
        return {
            architecture.own_layout: own,
            **{name: Layout(dict(self._places(architecture, name))) for name in others},
        }

    def bases(self) -> Iterator[LoraBase]:
        """Yield this very network as a base of LoRAs, in every layout."""
        family, component, model_class = self.family, "", self.label
        if self.known is not None:
            component, model_class = self.known[1].component, self.known[1].model_class
        for name, layout in self.layouts.items():
            weights = ((module, place.shape) for module, place in layout.places.items())
            yield LoraBase(family, component, model_class, name, (), modules_by_pattern(weights))

    def _places(self, architecture: Architecture, layout: str) -> Iterator[tuple[str, Place]]:
        """What modules are called in a layout; those that are made of several of the file's are not among them."""
        shapes = {**self.parameters, **{name + _WEIGHT: shape for name, shape in self.layers.items()}}
        try:
            key_map = architecture.key_map(layout, shapes)
        except (CheckpointError, LookupError):
            return  # this network is none that the layout has names for
        for step in () if key_map is None else key_map.inverse.steps(shapes)[0]:
            layers = tuple(name.removesuffix(_WEIGHT) for name in step.sources)
            if len(step.targets) > 1 or not step.targets[0].endswith(_WEIGHT) or not self.layers.keys() >= set(layers):
                continue
            try:
                (shape,) = step.change.shapes([self.layers[layer] for layer in layers])
            except UnfitShapeError:
                continue  # its widths are none that the layout has
            yield step.targets[0].removesuffix(_WEIGHT), Place(layers, step.change.inverse, shape)


def is_adapted(layer: torch.nn.Module) -> bool:
    """Whether PEFT has wrapped a layer."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(layer, BaseTunerLayer)


def _base_layers(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers as they were before adapters wrapped them, by the names that they had."""
    inside: tuple[str, ...] = ()
    for name, layer in module.named_modules():
        if name.startswith(inside):
            continue
        if is_adapted(layer):
            inside = (f"{name}.",)
            wrapped: Any = layer
            layer = wrapped.get_base_layer()
        yield name, layer


def _weight_shape(layer: torch.nn.Module) -> Shape | None:
    """The shape of a weight that pairs of matrices can be added to; trainers disagree on convolutions in groups."""
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return None


@dataclass(frozen=True)
class LoraTarget:
    """A pipeline, or a network alone, as LoRA files see it.

    Attributes:
        label: what messages call it, such as "FluxPipeline".
        networks: by the component that files call them: "denoiser", "text_encoder", ...
        loader: the pipeline's class in diffusers, which knows the dialects of its family; None where there is none.
        denoiser: what that class calls its denoiser.
        pipeline: None for a network alone.
    """

    label: str
    networks: Mapping[str, AdaptedNetwork]
    loader: Any
    denoiser: str
    pipeline: Any = None
