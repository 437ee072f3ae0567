"""Components whose config says that their weights are quantised: their library loads them, else they are decoded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from lading.checkpoint import Checkpoint
from lading.checkpoint.quantised import find_weights
from lading.errors import ComponentError
from lading.loading.network import is_diffusers_model

_log = logging.getLogger("lading.loading")


def is_for_its_library(
    where: str, model_class: type, config: Mapping[str, Any], checkpoint: Checkpoint, limited: bool
) -> bool:
    """Tell whether diffusers or transformers shall load quantised weights; otherwise they are to be decoded.

    Args:
        where: the component, for messages.
        config: with a `quantization_config`.
        checkpoint: the component's, as it is stored.
        limited: whether the weights have to keep within a limit, or are where the library does not find them.

    Raises:
        ComponentError: neither is possible; what to install is named.
    """
    reason = _reason_against(model_class, config["quantization_config"])
    if reason is None and not limited:
        return True
    weights = find_weights(checkpoint)
    if weights.schemes and not weights.remedies:
        _log.info("%s: %s is decoded while it loads: %s", where, ", ".join(weights.schemes), reason or "under a limit")
        return False
    method = _method(config["quantization_config"])
    if reason is not None:
        raise ComponentError(f"{where} is quantised by {method}, which cannot load it here: {reason}")
    raise ComponentError(f"{where} is quantised by {method}, which lading cannot decode: load it without a limit")


def _method(quantization_config: Any) -> str:
    found = quantization_config.get("quant_method") if isinstance(quantization_config, Mapping) else None
    return str(found or "an unknown method")


def _reason_against(model_class: type, quantization_config: Any) -> str | None:
    """Return why the library of a class cannot load its quantised weights here, in its words; None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it has to say it says when it loads
            if is_diffusers_model(model_class):
                from diffusers.quantizers.auto import DiffusersAutoQuantizer as Quantizers
            else:
                from transformers.quantizers.auto import AutoHfQuantizer as Quantizers
            Quantizers.from_config(dict(quantization_config), pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a config or a package is the reason
        return " ".join(str(error).split()) or type(error).__name__
    return None
