"""The few networks that diffusers and transformers lack, and how they join a pipeline of diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.models.blockwise_control import Attachment, BlockwiseControl, attach
    from lading.models.blockwise_controlnet import QwenImageBlockwiseControlNet
    from lading.models.condition import condition_tokens

_HOMES = {
    "lading.models.blockwise_control": ("Attachment", "BlockwiseControl", "attach"),
    "lading.models.blockwise_controlnet": ("QwenImageBlockwiseControlNet",),
    "lading.models.condition": ("condition_tokens",),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = ["Attachment", "BlockwiseControl", "QwenImageBlockwiseControlNet", "attach", "condition_tokens"]
