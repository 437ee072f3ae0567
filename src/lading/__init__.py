"""lading: loads diffusion models and runs or fine-tunes them in the memory there is.

Public names resolve on first use (PEP 562), so that `import lading` takes milliseconds and imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.catalog import identify, register_architecture
    from lading.checkpoint import DiskMap, convert_checkpoint, hash_model_file, load_state_dict, open_checkpoint
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
        latent_format,
        load_component,
        load_components,
        load_lora,
        load_model,
        load_pipeline,
        plan,
        skip_model_initialization,
    )
    from lading.memory import (
        AutoWrappedLinear,
        AutoWrappedModule,
        AutoWrappedNonRecurseModule,
        Manager,
        PipelineManager,
        enable_vram_management,
        manage,
        manager_of,
    )
    from lading.report import Recording, explain, record
    from lading.training import add_lora, freeze, save_lora, trainable_parameters

_HOMES = {
    "lading.catalog": ("identify", "register_architecture"),
    "lading.checkpoint": ("DiskMap", "convert_checkpoint", "hash_model_file", "load_state_dict", "open_checkpoint"),
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
        "latent_format",
        "load_component",
        "load_components",
        "load_lora",
        "load_model",
        "load_pipeline",
        "plan",
        "skip_model_initialization",
    ),
    "lading.memory": (
        "AutoWrappedLinear",
        "AutoWrappedModule",
        "AutoWrappedNonRecurseModule",
        "Manager",
        "PipelineManager",
        "enable_vram_management",
        "manage",
        "manager_of",
    ),
    "lading.report": ("Recording", "explain", "record"),
    "lading.training": ("add_lora", "freeze", "save_lora", "trainable_parameters"),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__version__ = "0.1.0"
__all__ = [
    "AutoWrappedLinear",
    "AutoWrappedModule",
    "AutoWrappedNonRecurseModule",
    "CheckpointError",
    "Components",
    "ComponentError",
    "DiskMap",
    "DownloadError",
    "IdentificationError",
    "LadingError",
    "Manager",
    "PipelineManager",
    "MemoryLimitError",
    "ModelConfig",
    "Recording",
    "ShapeError",
    "__version__",
    "add_lora",
    "convert_checkpoint",
    "enable_vram_management",
    "explain",
    "freeze",
    "hash_model_file",
    "identify",
    "latent_format",
    "load_component",
    "load_components",
    "load_lora",
    "load_model",
    "load_pipeline",
    "load_state_dict",
    "manage",
    "manager_of",
    "open_checkpoint",
    "plan",
    "record",
    "register_architecture",
    "save_lora",
    "shipped_model",
    "skip_model_initialization",
    "trainable_parameters",
]
