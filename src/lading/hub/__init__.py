"""Names to files: model ids of the Hugging Face Hub and ModelScope, local folders, and the model that ships here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.hub.model_config import ModelConfig
    from lading.hub.remote import RemoteModel, open_remote, remote_checkpoints
    from lading.hub.snapshot import model_folder, shipped_model

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.hub.model_config": ("ModelConfig",),
        "lading.hub.remote": ("RemoteModel", "open_remote", "remote_checkpoints"),
        "lading.hub.snapshot": ("model_folder", "shipped_model"),
    },
)

__all__ = ["ModelConfig", "RemoteModel", "model_folder", "open_remote", "remote_checkpoints", "shipped_model"]
