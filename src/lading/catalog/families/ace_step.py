"""ACE-Step's autoencoder of sound. https://github.com/ace-step/ACE-Step-1.5"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.shapes import Shapes, quotient

_VAE = {
    "encoder_hidden_size": 128,
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "channel_multiples": [1, 2, 4, 8, 16],
    "decoder_channels": 128,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 48000,
}


def _vae(shapes: Shapes) -> dict[str, Any]:
    base = shapes.size("encoder.conv1.weight_v")
    blocks = range(shapes.count("encoder.block"))
    decoder = shapes.count("decoder.block")
    return {
        "encoder_hidden_size": base,
        "downsampling_ratios": [shapes.size(f"encoder.block.{block}.conv1.weight_v", 2) // 2 for block in blocks],
        "channel_multiples": [
            quotient(shapes.size(f"encoder.block.{block}.conv1.weight_v"), base, "channels") for block in blocks
        ],
        "decoder_channels": shapes.size(f"decoder.block.{decoder - 1}.conv_t1.weight_v", 1),
        "decoder_input_channels": shapes.size("decoder.conv1.weight_v", 1),
        "audio_channels": shapes.size("encoder.conv1.weight_v", 1),
    }


def _inputs(config: Config, extent: Extent) -> Inputs:
    length = 1
    for ratio in config["downsampling_ratios"]:
        length *= ratio
    return {"sample": InputSpec((extent.batch, config["audio_channels"], 8 * extent.num_frames * length))}


FAMILY = Family(
    "ace_step",
    (
        Architecture(
            "vae",
            "diffusers.AutoencoderOobleck",
            _vae,
            _inputs,
            published={"ACE-Step/Ace-Step1.5": _VAE},
            unverified={"sampling_rate": 44100},
        ),
    ),
)
