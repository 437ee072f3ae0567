"""Networks whose GGUF weights stay as they are stored: diffusers' layers decode them each time they compute."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch

from lading.catalog.origin import Origin
from lading.checkpoint import Checkpoint
from lading.checkpoint.encoding import GgmlBlocks
from lading.checkpoint.header import TensorInfo
from lading.errors import ComponentError
from lading.loading.network import build_empty, is_diffusers_model, kept_in_float32
from lading.loading.source import Source
from lading.loading.streamed import named_as_the_network


def build_with_gguf_layers(
    model_class: type[torch.nn.Module],
    source: Source | Checkpoint,
    config: Any,
    quantization_config: Any,
    dtype: torch.dtype | None,
) -> tuple[Any, Source]:
    """Build a network of diffusers, without memory, whose linear layers take GGUF weights as they are stored.

    Everything else is decoded: what is no weight of a linear layer, what the class keeps in float32, and what
    `quantization_config` names.

    Args:
        source: a checkpoint's tensors are named as diffusers names them.
        quantization_config: a `diffusers.GGUFQuantizationConfig`.
        dtype: of what is decoded.

    Returns:
        The network, and the source of what it takes.

    Raises:
        ComponentError: the class, the config or the file has nothing to do with GGUF.
    """
    if not is_diffusers_model(model_class):
        raise ComponentError(
            f"{source}: {model_class.__name__} has no layers for GGUF weights, only networks of diffusers have: "
            "leave quantization_config out, and they are decoded while they load"
        )
    model: Any = build_empty(model_class, config, dtype)
    if isinstance(source, Checkpoint):
        source = Source.of(source, named_as_the_network(model, source, None))
    quantizer = _quantizer(source, quantization_config)
    decoded, float32 = set(quantizer.modules_to_not_convert), kept_in_float32(model_class, dtype)
    kept: dict[str, Origin] = {}
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, torch.nn.Linear) and weight in source.origins and decoded.isdisjoint(name.split(".")):
            stored = _as_stored(source.origins[weight])
            if stored is not None and not float32(weight):
                kept[weight] = stored
    from diffusers.quantizers.gguf.utils import GGUFParameter

    empty = {
        name: GGUFParameter(torch.empty(origin.shape, dtype=torch.uint8, device="meta"), quant_type=_type(source, name))
        for name, origin in kept.items()
    }
    quantizer.preprocess_model(model, device_map=None, state_dict=empty, keep_in_fp32_modules=[])
    for name, parameter in empty.items():
        model.get_submodule(name.rpartition(".")[0])._parameters["weight"] = parameter
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    return model, Source(source.checkpoint, {**source.origins, **kept})


def _quantizer(source: Source, quantization_config: Any) -> Any:
    method = str(getattr(quantization_config, "quant_method", type(quantization_config).__name__))
    if not method.lower().endswith("gguf"):
        raise ComponentError(
            f"{source}: quantization_config={method} is none for GGUF: give a diffusers.GGUFQuantizationConfig, or "
            "leave it out"
        )
    if not any(_blocks(run) for origin in source.origins.values() for run in origin.runs):
        raise ComponentError(f"{source}: holds no weights of GGUF to keep: leave quantization_config out")
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    quantizer = DiffusersAutoQuantizer.from_config(quantization_config)
    try:
        quantizer.validate_environment()
    except ImportError as error:
        raise ComponentError(f"{source}: diffusers cannot keep GGUF weights here: {error}") from error
    return quantizer


def _blocks(info: TensorInfo) -> GgmlBlocks | None:
    return info.encoding if isinstance(info.encoding, GgmlBlocks) else None


def _type(source: Source, name: str) -> Any:
    """The package gguf's name of the type that a tensor is stored in."""
    import gguf

    encoding = source.origins[name].runs[0].encoding
    assert isinstance(encoding, GgmlBlocks)
    return gguf.GGMLQuantizationType(encoding.number)


def _as_stored(origin: Origin) -> Origin | None:
    """Return the bytes of a matrix, row by row; None if they are not all blocks of one type that diffusers knows."""
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    blocks = _blocks(origin.runs[0])
    rows, *columns = origin.shape
    if blocks is None or not origin.is_plain or len(columns) != 1 or columns[0] % blocks.block:
        return None
    if any(run.encoding != blocks for run in origin.runs) or blocks.number not in SUPPORTED_GGUF_QUANT_TYPES:
        return None
    width = blocks.nbytes(columns[0])
    runs = tuple(
        replace(run, dtype="uint8", shape=(prod(run.shape) // columns[0], width), encoding=None) for run in origin.runs
    )
    return Origin(runs, (rows, width))
