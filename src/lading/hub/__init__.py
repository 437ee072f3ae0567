"""Names to files: model ids of the Hugging Face Hub and ModelScope, local folders, and the model that ships here."""

from lading.hub.model_config import ModelConfig
from lading.hub.snapshot import model_folder, shipped_model

__all__ = ["ModelConfig", "model_folder", "shipped_model"]
