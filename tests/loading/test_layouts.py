"""Files in the names of models' makers: through every key map to the network, resident, on demand and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lading import MemoryLimitError, identify, load_model, manager_of
from lading.catalog import find_architecture
from tests.catalog.networks import shallow
from tests.catalog.test_against_diffusers import CASES
from tests.loading.networks import QWEN_3, QWEN_TEXT, T5, Case, write


def published(family: str, name: str, model: str, **changes: Any) -> dict[str, Any]:
    """A published config, shallow and with other sizes."""
    return {**shallow(dict(find_architecture(family, name).published[model])), **changes}


def prefixed(family: str, name: str, layout: str, config: dict[str, Any]) -> Case:
    return Case(family, f"transformers.{name}", layout, config)


HUNYUAN: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "text_embed_dim": 8, "pooled_projection_dim": 8} | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}
VISION = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1} | {
    "patch_size": 4,
    "image_size": 16,
}
CHANGED: dict[str, dict[str, Any]] = {
    "HunyuanVideo": HUNYUAN,
    "Mochi": {"num_attention_heads": 1, "attention_head_dim": 8, "pooled_projection_dim": 8, "text_embed_dim": 16}
    | {"time_embed_dim": 8, "in_channels": 2, "num_layers": 3},
}
"""Smaller than what diffusers' converters take."""

LAYOUTS = {
    label: Case(
        family, name, "original (stacked)" if "stacked" in label else "original", CHANGED.get(label, config), prefix
    )
    for label, (family, name, prefix, config, _) in CASES.items()
    if label != "FLUX.1"
} | {
    "CogVideoX": Case(
        "cogvideox",
        "diffusers.CogVideoXTransformer3DModel",
        "original",
        published("cogvideox", "diffusers.CogVideoXTransformer3DModel", "zai-org/CogVideoX-2b", num_attention_heads=1),
    ),
    "CogVideoX autoencoder": Case(
        "cogvideox",
        "diffusers.AutoencoderKLCogVideoX",
        "original",
        {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4}
        | {f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 2 for way in ("down", "up")},
    ),
    "Mochi autoencoder": Case(
        "mochi",
        "diffusers.AutoencoderKLMochi",
        "original",
        published("mochi", "diffusers.AutoencoderKLMochi", "genmo/mochi-1-preview")
        | {f"{half}_block_out_channels": (32, 32, 32, 64) for half in ("encoder", "decoder")}
        | {"layers_per_block": (1,) * 5},
    ),
    "LTX-Video autoencoder": Case(
        "ltx",
        "diffusers.AutoencoderKLLTXVideo",
        "original",
        published("ltx", "diffusers.AutoencoderKLLTXVideo", "Lightricks/LTX-Video")
        | {f"{half}block_out_channels": (8, 16, 32, 32) for half in ("", "decoder_")},
    ),
    "Ideogram 4": Case(
        "ideogram4",
        "diffusers.Ideogram4Transformer2DModel",
        "original",
        {"in_channels": 8, "num_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1}
        | {"intermediate_size": 16, "adaln_dim": 8, "llm_features_dim": 16},
    ),
    "XLabs ControlNet": Case(
        "flux",
        "diffusers.FluxControlNetModel",
        "original",
        published("flux", "diffusers.FluxControlNetModel", "XLabs-AI/flux-controlnet-canny-diffusers")
        | {"num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 8}
        | {"pooled_projection_dim": 8},
    ),
    "CLIP, pictures": prefixed("clip", "CLIPVisionModel", "hub (vision_model. prefix)", VISION),
    "SigLIP": prefixed("siglip", "SiglipVisionModel", "hub (vision_model. prefix)", VISION),
    "DINOv3": prefixed(
        "dinov3",
        "DINOv3ViTModel",
        "hub (layer. prefix)",
        published("dinov3", "transformers.DINOv3ViTModel", "facebook/dinov3-vitl16-pretrain-lvd1689m", **VISION),
    ),
    "Gemma 2": prefixed("gemma2", "Gemma2Model", "hub (model. prefix)", {**QWEN_TEXT, "head_dim": 256}),
    "Qwen3": prefixed("qwen", "Qwen3Model", "hub (model. prefix)", QWEN_3),
    "T5 of llama.cpp": prefixed("t5", "T5EncoderModel", "llama.cpp", T5),
}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning")  # diffusers' ControlNet takes it from an old place
@pytest.mark.filterwarnings("ignore:.*autocast")  # what Mochi wants of float32 where torch has it for 16 bits alone
@pytest.mark.parametrize("label", LAYOUTS)
def test_a_file_in_its_makers_names_gives_back_every_value_resident_on_demand_and_streamed(
    tmp_path: Path, label: str
) -> None:
    case = LAYOUTS[label]
    file, tensors = write(tmp_path, case)
    (candidate,) = {
        (one.model_class, one.layout): one
        for one in identify(file).candidates
        if (one.model_class, one.layout) == (case.name, case.layout)
    }.values()
    options: dict[str, Any] = {"config": case.config, "torch_dtype": None}
    with pytest.raises(MemoryLimitError) as too_small:
        load_model(candidate, file, **options, memory_limit=1000)
    for way in ({}, {"use_disk_map": True}, {"memory_limit": too_small.value.minimum}):
        network: Any = load_model(candidate, file, **options, **way)
        state = network.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert manager_of(network).plan.placement.slots
