"""Fine-tuning in the memory there is: parts are frozen, adapted, prepared for, trained and saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.training.adapters import add_lora, default_targets, save_lora
    from lading.training.freezing import TrainingTable, freeze, trainable_parameters, training_table
    from lading.training.runs import Outcome, train_model
    from lading.training.settings import Settings
    from lading.training.watching import Progress, Watcher

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.training.adapters": ("add_lora", "default_targets", "save_lora"),
        "lading.training.freezing": ("TrainingTable", "freeze", "trainable_parameters", "training_table"),
        "lading.training.runs": ("Outcome", "train_model"),
        "lading.training.settings": ("Settings",),
        "lading.training.watching": ("Progress", "Watcher"),
    },
)

__all__ = [
    "Outcome",
    "Progress",
    "Settings",
    "TrainingTable",
    "Watcher",
    "add_lora",
    "default_targets",
    "freeze",
    "save_lora",
    "train_model",
    "trainable_parameters",
    "training_table",
]
