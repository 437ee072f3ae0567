"""Signatures: the patterns that the names of a network's tensors make, whatever its depth and width.

A signature is a set of (name with `#` for every number, number of axes). Those of the shipped families are kept in
`signatures.json`, made from the real classes by `lading.catalog.construction`; so recognising a file imports neither
torch nor the families that it is not of.
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
from lading.catalog.shapes import Shapes, pattern_of

SIGNATURES = Path(__file__).with_name("signatures.json")
_MOST_BESIDE = 64


@dataclass(frozen=True)
class Signature:
    """The patterns of an architecture in one layout.

    Attributes:
        family: the file in `families`.
        model_class: of the architecture.
        layout: of the file.
        required: patterns that every such network has.
        optional: patterns that some have.
        beside: patterns of names, without axes, that may stand beside the network's.
    """

    family: str
    model_class: str
    layout: str
    required: frozenset[str]
    optional: frozenset[str]
    beside: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "family": self.family,
            "model_class": self.model_class,
            "layout": self.layout,
            "required": sorted(self.required),
            "optional": sorted(self.optional),
            "beside": list(self.beside),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Signature:
        """Read a signature from JSON."""
        return cls(
            entry["family"],
            entry["model_class"],
            entry["layout"],
            frozenset(entry["required"]),
            frozenset(entry["optional"]),
            tuple(entry["beside"]),
        )

    @cached_property
    def _beside(self) -> re.Pattern[str] | None:
        return name_pattern(self.beside)

    def fit(self, patterns: frozenset[str]) -> Fit:
        """Compare with the patterns of a file."""
        return Fit(self, patterns, len(self._known & patterns))

    @cached_property
    def _known(self) -> frozenset[str]:
        return self.required | self.optional

    def extra(self, patterns: frozenset[str]) -> frozenset[str]:
        """Return the patterns that are neither the network's nor allowed beside it."""
        unknown = patterns - self._known
        if self._beside is None:
            return unknown
        return frozenset(one for one in unknown if not self._beside.fullmatch(one.partition(":")[0]))


@dataclass(frozen=True)
class Fit:
    """How a file's patterns compare with a signature's.

    Attributes:
        patterns: of the file.
        common: how many of them the network knows.
    """

    signature: Signature
    patterns: frozenset[str]
    common: int

    @cached_property
    def missing(self) -> frozenset[str]:
        """Patterns that the network needs and the file lacks."""
        return self.signature.required - self.patterns

    @cached_property
    def extra(self) -> frozenset[str]:
        """Patterns that the file has and the network does not know."""
        return self.signature.extra(self.patterns)

    @property
    def is_full(self) -> bool:
        """Whether nothing is missing and nothing is extra."""
        few = len(self.patterns) - self.common <= _MOST_BESIDE  # so that a hostile file costs no time here
        return bool(self.patterns) and few and not self.missing and not self.extra

    @property
    def score(self) -> float:
        """Agreement from 0 to 1: of the patterns on either side, the share that is on both (Jaccard's index)."""
        return self.common / (len(self.patterns) + len(self.missing)) if self.patterns else 0.0


def name_pattern(templates: Iterable[str]) -> re.Pattern[str] | None:
    """Return one pattern for names with placeholders as in key maps; numbers may also be `#`. None for no templates."""
    meaning = {"leaf": r"[^.]+", "rest": r".*"}
    branches = [
        re.sub(r"\\\{([a-z]+)\\\}", lambda match: meaning.get(match[1], r"(?:[0-9]+|\#)"), re.escape(template))
        for template in templates
    ]
    return re.compile("|".join(branches)) if branches else None


def patterns_of(shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the patterns of names and numbers of axes: `blocks.#.norm.weight:1`."""
    if isinstance(shapes, Shapes):
        return frozenset(f"{key}:{len(shapes[name])}" for key, names in shapes.by_pattern.items() for name in names)
    return frozenset(f"{pattern_of(name)}:{len(shape)}" for name, shape in shapes.items())


@cache
def shipped_signatures() -> tuple[Signature, ...]:
    """Return the signatures of the families that lading ships."""
    entries = json.loads(SIGNATURES.read_bytes()) if SIGNATURES.is_file() else []
    return tuple(Signature.from_json(entry) for entry in entries)
