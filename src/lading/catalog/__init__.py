"""What a checkpoint is, told from its header. One file per model family in `families`.

Nothing here imports torch but `lading.catalog.construction`, which builds networks on the meta device to verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.catalog.architecture import (
        Architecture,
        Component,
        Extent,
        Family,
        InputSpec,
        LatentNumbers,
        ObjectSpec,
        Repository,
    )
    from lading.catalog.hashes import KnownModel, known_models
    from lading.catalog.identification import Candidate, Identification
    from lading.catalog.keymap import KeyMap, Rule
    from lading.catalog.lora import Lora, LoraMatch, LoraPart
    from lading.catalog.recognition import identify, identify_checkpoint
    from lading.catalog.registry import (
        component_config,
        family_names,
        find_architecture,
        find_repository,
        known_families,
        register_architecture,
    )
    from lading.catalog.shapes import Shapes, UnknownSizeError

_HOMES = {
    "lading.catalog.architecture": (
        "Architecture",
        "Component",
        "Extent",
        "Family",
        "InputSpec",
        "LatentNumbers",
        "ObjectSpec",
        "Repository",
    ),
    "lading.catalog.hashes": ("KnownModel", "known_models"),
    "lading.catalog.identification": ("Candidate", "Identification"),
    "lading.catalog.recognition": ("identify", "identify_checkpoint"),
    "lading.catalog.keymap": ("KeyMap", "Rule"),
    "lading.catalog.lora": ("Lora", "LoraMatch", "LoraPart"),
    "lading.catalog.registry": (
        "component_config",
        "family_names",
        "find_architecture",
        "find_repository",
        "known_families",
        "register_architecture",
    ),
    "lading.catalog.shapes": ("Shapes", "UnknownSizeError"),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = [
    "Architecture",
    "Candidate",
    "Component",
    "Extent",
    "Family",
    "Identification",
    "InputSpec",
    "KeyMap",
    "KnownModel",
    "LatentNumbers",
    "Lora",
    "LoraMatch",
    "LoraPart",
    "ObjectSpec",
    "Repository",
    "Rule",
    "Shapes",
    "UnknownSizeError",
    "component_config",
    "family_names",
    "find_architecture",
    "find_repository",
    "identify",
    "identify_checkpoint",
    "known_families",
    "known_models",
    "register_architecture",
]
