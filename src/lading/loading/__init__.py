"""The loading path: config names -> loaders -> components -> pipeline, visible at every step."""

from lading.loading.components import Components, load_component, load_components
from lading.loading.initialization import skip_model_initialization
from lading.loading.loaders import ComponentSpec, Loaded, LoadOptions, register_loader
from lading.loading.model import load_model
from lading.loading.pipeline import load_pipeline
from lading.loading.record import LoadRecord

__all__ = [
    "ComponentSpec",
    "Components",
    "LoadOptions",
    "LoadRecord",
    "Loaded",
    "load_component",
    "load_components",
    "load_model",
    "load_pipeline",
    "register_loader",
    "skip_model_initialization",
]
