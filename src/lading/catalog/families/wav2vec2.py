"""wav2vec 2.0: the speech that drives Wan2.2-S2V."""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import Architecture, Config, Extent, Family, Inputs, InputSpec
from lading.catalog.keymap import KeyMap, rename
from lading.catalog.shapes import Shapes, quotient

_XLSR = {
    "vocab_size": 33,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
_BASE = {
    **_XLSR,
    "vocab_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
}
_POSITION = "wav2vec2.encoder.pos_conv_embed.conv"


def _ctc(shapes: Shapes) -> dict[str, Any]:
    convolutions = "wav2vec2.feature_extractor.conv_layers"
    kernels = [shapes.shape(f"{convolutions}.{n}.conv.weight") for n in range(shapes.count(convolutions))]
    width, per_group, positions = shapes.shape(f"{_POSITION}.parametrizations.weight.original1")
    layered = shapes.has(f"{convolutions}.1.layer_norm.weight")
    return {
        "vocab_size": shapes.size("lm_head.weight"),
        "hidden_size": width,
        "num_hidden_layers": shapes.count("wav2vec2.encoder.layers"),
        "num_attention_heads": max(width // 64, 1),
        "intermediate_size": shapes.size("wav2vec2.encoder.layers.{n}.feed_forward.intermediate_dense.weight"),
        "conv_dim": tuple(shape[0] for shape in kernels),
        "conv_kernel": tuple(shape[2] for shape in kernels),
        "conv_bias": shapes.has(f"{convolutions}.0.conv.bias"),
        "feat_extract_norm": "layer" if layered else "group",
        "do_stable_layer_norm": layered,
        "num_conv_pos_embeddings": positions,
        "num_conv_pos_embedding_groups": quotient(width, per_group, "groups"),
    }


def _inputs(_config: Config, extent: Extent) -> Inputs:
    return {"input_values": InputSpec((extent.batch, 16000 * extent.num_frames))}


_OLD = KeyMap(
    (
        rename(f"{_POSITION}.weight_g", f"{_POSITION}.parametrizations.weight.original0"),
        rename(f"{_POSITION}.weight_v", f"{_POSITION}.parametrizations.weight.original1"),
        rename("{rest}", "{rest}"),
    )
)

FAMILY = Family(
    "wav2vec2",
    (
        Architecture(
            "audio_encoder",
            "transformers.Wav2Vec2ForCTC",
            _ctc,
            _inputs,
            published={
                "jonatasgrosman/wav2vec2-large-xlsr-53-english": _XLSR,
                "facebook/wav2vec2-base-960h": _BASE,
            },
            layouts={"hub (weight_g and weight_v)": _OLD},
            own_layout="hub",
            unverified={
                "num_attention_heads": None,
                "conv_stride": (5, 2, 2, 2, 2, 2, 2),
                "do_stable_layer_norm": False,
            },
            beside=("wav2vec2.masked_spec_embed",),
        ),
    ),
)
