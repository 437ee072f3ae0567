"""lading: loads diffusion models and runs or fine-tunes them in the memory there is.

Public names resolve on first use (PEP 562), so that `import lading` takes milliseconds and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lading.checkpoint import DiskMap, hash_model_file, load_state_dict, open_checkpoint
    from lading.errors import (
        CheckpointError,
        ComponentError,
        DownloadError,
        IdentificationError,
        LadingError,
        MemoryLimitError,
        ShapeError,
    )
    from lading.hub import ModelConfig, shipped_model
    from lading.loading import (
        Components,
        load_component,
        load_components,
        load_model,
        load_pipeline,
        skip_model_initialization,
    )

_HOMES: dict[str, tuple[str, ...]] = {
    "lading.checkpoint": ("DiskMap", "hash_model_file", "load_state_dict", "open_checkpoint"),
    "lading.errors": (
        "CheckpointError",
        "ComponentError",
        "DownloadError",
        "IdentificationError",
        "LadingError",
        "MemoryLimitError",
        "ShapeError",
    ),
    "lading.hub": ("ModelConfig", "shipped_model"),
    "lading.loading": (
        "Components",
        "load_component",
        "load_components",
        "load_model",
        "load_pipeline",
        "skip_model_initialization",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Components",
    "ComponentError",
    "DiskMap",
    "DownloadError",
    "IdentificationError",
    "LadingError",
    "MemoryLimitError",
    "ModelConfig",
    "ShapeError",
    "__version__",
    "hash_model_file",
    "load_component",
    "load_components",
    "load_model",
    "load_pipeline",
    "load_state_dict",
    "open_checkpoint",
    "shipped_model",
    "skip_model_initialization",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lading' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
