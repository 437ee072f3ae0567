"""What the catalog knows of a network, and of a family of them. All of it is data and plain Python.

A family is one file in `lading/catalog/families/`; it makes one `Family`, and nothing else in the tree names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lading.catalog.change import Shape
from lading.catalog.keymap import KeyMap
from lading.catalog.shapes import Shapes
from lading.latents.latent_numbers import LatentNumbers as LatentNumbers

Config: TypeAlias = "Mapping[str, Any]"
"""Keyword arguments of a network's constructor, or of its config class."""

Inputs: TypeAlias = "dict[str, Any]"
"""Arguments of a forward by name: an `InputSpec` or `ObjectSpec`, lists and mappings of them, or a plain value."""

Layout: TypeAlias = "KeyMap | Callable[[Shapes], KeyMap]"
"""A key map from a file to the network; or, where the rules depend on the depth, a function that makes one out of the
names and shapes of either side."""


@dataclass(frozen=True)
class InputSpec:
    """One argument of a network's forward, for tracing.

    Attributes:
        dtype: torch's name of the dtype.
        values: nested tuples of this shape, where the network's course depends on what the tensor holds.
    """

    shape: Shape
    dtype: str = "float32"
    values: Any = None


@dataclass(frozen=True)
class ObjectSpec:
    """One argument of a forward that is an object of a library's own.

    Attributes:
        made_by: library and class, or function.
        arguments: of it, by name.
    """

    made_by: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Extent:
    """What is to be made, in pixels: what example inputs depend on.

    Attributes:
        num_frames: of a film; 1 for a picture. For sound, seconds.
        tokens: of the prompt.
    """

    batch: int = 1
    height: int = 512
    width: int = 512
    num_frames: int = 1
    tokens: int = 16


def _always(_config: Config, _shapes: Shapes) -> bool:
    return True


def _no_extras(_shapes: Shapes) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """A network's class and how its checkpoints look.

    Attributes:
        component: what a pipeline calls it: "transformer", "vae", "text_encoder", ...
        model_class: library and class, such as "diffusers.FluxTransformer2DModel".
        infer_config: the config that names and shapes tell, given in the network's own names; raises
            `UnknownSizeError` where they do not tell it.
        published: checkpoint -> its whole config, for those that the world uses. They are the examples that structures
            are made of, and they fill in what shapes cannot tell.
        layouts: name -> key map, for files that name tensors otherwise than the network does.
        own_layout: what the network's own names are called.
        unverified: what shapes cannot tell -> the value that holds unless something better is known.
        examples: further configs with optional parts that no published checkpoint has.
        tied: patterns of names that files may leave out, as another tensor is the same.
        beside: patterns of names that files may hold beside the network's.
        extras: of a file's tensors, in the network's names, those that the class cannot hold -> what they are. What is
            beside the network and not an extra is nothing that would be missed.
        example_inputs: the arguments of one forward, for a config and an extent; None where only a real call can be the
            trace.
        lent: attributes that another network of the pipeline lends it; until it has them, nobody can call it.
        fits: whether tensors suffice for a published config, where what shapes leave open asks for tensors of its own.
        lora_targets: the modules that a LoRA changes by default; none for networks that no LoRA is made for.
        lora_layouts: name -> key map, for LoRA files whose modules have names that no checkpoint has.
        kohya_layout: the layout, for a config, by whose names kohya's programs know the layers that they adapt; None
            where they do not know the network.
        latent: where the network is a denoiser, the numbers of its latent.
    """

    component: str
    model_class: str
    infer_config: Callable[[Shapes], dict[str, Any]]
    example_inputs: Callable[[Config, Extent], Inputs] | None
    published: Mapping[str, Config]
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    own_layout: str = "diffusers"
    unverified: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[Config, ...] = ()
    tied: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    extras: Callable[[Shapes], dict[str, str]] = _no_extras
    lent: tuple[str, ...] = ()
    fits: Callable[[Config, Shapes], bool] = _always
    lora_targets: tuple[str, ...] = ()
    lora_layouts: Mapping[str, KeyMap] = field(default_factory=dict)
    kohya_layout: Callable[[Config], str] | None = None
    latent: LatentNumbers | None = None

    def key_map(self, layout: str, shapes: Mapping[str, Shape]) -> KeyMap | None:
        """Return the map of a layout for these tensors, the file's or the network's; None for the own layout."""
        if layout == self.own_layout:
            return None
        found = self.lora_layouts.get(layout) or self.layouts[layout]
        return found if isinstance(found, KeyMap) else found(Shapes(shapes))

    def __str__(self) -> str:
        return f"{self.component}  {self.model_class}  layouts: {', '.join((self.own_layout, *self.layouts))}"


@dataclass(frozen=True)
class Component:
    """A network of a pipeline.

    Attributes:
        model_class: as in `Architecture`.
        published: the entry of that architecture's `published` that holds its config.
        called: what files and prefixes call it, where the pipeline has several networks of its class.
        identities: its weights that files leave out where they are identity matrices.
        layers: so many of the first are used, where files hold more.
    """

    model_class: str
    published: str = ""
    called: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    layers: int | None = None


@dataclass(frozen=True)
class Repository:
    """A pipeline on the hub, known offline.

    Attributes:
        pipeline_class: such as "diffusers.FluxPipeline".
        components: the networks by the pipeline's names for them, the denoiser first.
        optional: those that it does without.
        settings: what else its constructor is given.
    """

    pipeline_class: str
    components: Mapping[str, Component]
    optional: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Networks that belong together.

    Attributes:
        name: that of its file.
        repositories: hub id -> what is in it.
    """

    name: str
    architectures: tuple[Architecture, ...]
    repositories: Mapping[str, Repository] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"  {architecture}" for architecture in self.architectures)])
