"""The networks that LoRAs are made for, as a LoRA's names and shapes show them: modules by pattern, widths, depth.

Those of the shipped families are kept in `lora_bases.json`, made from the published configs by
`lading.catalog.construction`; so recognising a LoRA imports neither torch nor a family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lading.catalog.change import Shape
from lading.catalog.lora_names import names_in_networks
from lading.catalog.shapes import pattern_of

LORA_BASES = Path(__file__).with_name("lora_bases.json")

MATCHES = ("depth and widths", "widths", "names", "some names")
"""How well a base fits, the best first: "depth and widths" is every name, every width, and up to the last layer of each
pattern; "some names" are at least half of the modules."""

_FIRST_NUMBER = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True)
class BaseModules:
    """The modules of one pattern.

    Attributes:
        last: the highest number that the pattern's first `#` stands for; -1 without any.
        shapes: of their weights; none where they are not known.
    """

    last: int
    shapes: frozenset[Shape]


@dataclass(frozen=True)
class LoraNetwork:
    """A network that LoRAs are made for, in one layout.

    Attributes:
        component: what a pipeline calls it, such as "unet".
        model_class: such as "diffusers.UNet2DConditionModel".
        layout: whose names of modules a LoRA has.
        models: published checkpoints.
    """

    family: str
    component: str
    model_class: str
    layout: str
    models: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "family": self.family,
            "component": self.component,
            "model_class": self.model_class,
            "layout": self.layout,
            "models": list(self.models),
        }


@dataclass(frozen=True)
class LoraBase(LoraNetwork):
    """A network as it was published, its models those of these widths and this depth.

    Attributes:
        modules: pattern -> the modules with weights of two axes or more.
    """

    modules: Mapping[str, BaseModules]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            **super().to_json(),
            "modules": {
                name: [found.last, *sorted(map(list, found.shapes))] for name, found in sorted(self.modules.items())
            },
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> LoraBase:
        """Read a base from JSON."""
        modules = {
            name: BaseModules(last, frozenset(map(tuple, shapes))) for name, (last, *shapes) in entry["modules"].items()
        }
        return cls(
            entry["family"],
            entry["component"],
            entry["model_class"],
            entry["layout"],
            tuple(entry["models"]),
            modules,
        )

    @cached_property
    def flat(self) -> Mapping[str, str]:
        """Pattern with `_` for every dot -> pattern."""
        return {name.replace(".", "_"): name for name in self.modules}

    def match(self, touched: Mapping[str, BaseModules], is_flat: bool) -> str | None:
        """Return which of `MATCHES` holds for the modules that a LoRA changes; None for none of them."""
        names = {name: (self.flat.get(name, ""),) if is_flat else names_in_networks(name) for name in touched}
        owned = ((name, next((own for own in owns if own in self.modules), None)) for name, owns in names.items())
        known = {name: self.modules[own] for name, own in owned if own is not None}
        if 2 * len(known) < len(touched):
            return None
        if len(known) < len(touched):
            return "some names"
        if any(touched[name].last > own.last or not touched[name].shapes <= own.shapes for name, own in known.items()):
            return "names"
        if any(touched[name].last < own.last for name, own in known.items()):
            return "widths"
        return "depth and widths"


def modules_by_pattern(shapes: Iterable[tuple[str, Shape | None]]) -> dict[str, BaseModules]:
    """Group modules by pattern.

    Args:
        shapes: names, dotted or flat, and the shapes of their weights; None where that is not known.
    """
    found: dict[str, tuple[int, set[Shape]]] = {}
    for name, shape in shapes:
        last, known = found.get(pattern := pattern_of(name), (-1, set[Shape]()))
        if shape is not None:
            known.add(trimmed(shape))
        found[pattern] = max(last, first_number(name)), known
    return {pattern: BaseModules(last, frozenset(known)) for pattern, (last, known) in found.items()}


def first_number(name: str) -> int:
    """Return the first number in a name, cut after six digits; -1 without any."""
    found = _FIRST_NUMBER.search(name)
    return int(found[0]) if found is not None else -1


def trimmed(shape: Shape) -> Shape:
    """Return a weight's shape without the last axes of size one: a convolution of one pixel is a linear layer."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@cache
def shipped_lora_bases() -> tuple[LoraBase, ...]:
    """Return the bases of the families that lading ships."""
    entries = json.loads(LORA_BASES.read_bytes()) if LORA_BASES.is_file() else []
    return tuple(LoraBase.from_json(entry) for entry in entries)
