"""The loading path: config names -> loaders -> components -> pipeline, visible at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.loading.components import Components, load_component, load_components
    from lading.loading.initialization import skip_model_initialization
    from lading.loading.latents import latent_format
    from lading.loading.loaders import ComponentSpec, Loaded, LoadOptions, register_loader
    from lading.loading.lora import LoadedLora, load_lora
    from lading.loading.model import load_model
    from lading.loading.pipeline import load_pipeline
    from lading.loading.planning import plan
    from lading.loading.plans import Plan
    from lading.loading.progress import show_progress
    from lading.loading.record import LoadRecord

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.loading.components": ("Components", "load_component", "load_components"),
        "lading.loading.initialization": ("skip_model_initialization",),
        "lading.loading.latents": ("latent_format",),
        "lading.loading.loaders": ("ComponentSpec", "LoadOptions", "Loaded", "register_loader"),
        "lading.loading.lora": ("LoadedLora", "load_lora"),
        "lading.loading.model": ("load_model",),
        "lading.loading.pipeline": ("load_pipeline",),
        "lading.loading.planning": ("plan",),
        "lading.loading.plans": ("Plan",),
        "lading.loading.progress": ("show_progress",),
        "lading.loading.record": ("LoadRecord",),
    },
)

__all__ = [
    "ComponentSpec",
    "Components",
    "LoadOptions",
    "LoadRecord",
    "Loaded",
    "LoadedLora",
    "Plan",
    "latent_format",
    "load_component",
    "load_components",
    "load_lora",
    "load_model",
    "load_pipeline",
    "plan",
    "register_loader",
    "show_progress",
    "skip_model_initialization",
]
