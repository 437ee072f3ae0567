"""The causal video autoencoder that Wan and Qwen-Image share: sizes and example inputs."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Config, Extent, Inputs, InputSpec
from lading.catalog.shapes import Shapes, quotient


def infer_flat(shapes: Shapes) -> dict[str, Any]:
    """The sizes where the encoder's layers are one flat list: residual blocks, and after each level a resampling."""
    blocks, base = "encoder.down_blocks", shapes.size("encoder.conv_in.weight")
    levels: list[list[int]] = [[]]
    temporal: list[bool] = []
    for number in shapes.numbers(blocks):
        if shapes.has(f"{blocks}.{number}.conv1.weight"):
            levels[-1].append(quotient(shapes.size(f"{blocks}.{number}.conv1.weight"), base, "width"))
        elif shapes.has(f"{blocks}.{number}.resample.1.weight"):
            temporal.append(shapes.has(f"{blocks}.{number}.time_conv.weight"))
            levels.append([])
    return {
        "base_dim": base,
        "z_dim": shapes.size("decoder.conv_in.weight", 1),
        "dim_mult": [level[0] for level in levels if level],
        "num_res_blocks": len(levels[0]),
        "temperal_downsample": temporal,
    }


def inputs(channels: int, config: Config, extent: Extent) -> Inputs:
    """One film."""
    return {"sample": InputSpec((extent.batch, channels, extent.num_frames, extent.height, extent.width))}
