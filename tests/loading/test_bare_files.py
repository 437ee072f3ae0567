"""Bare files in original layouts: recognised, mapped, and bit for bit the network that was written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from lading import (
    ComponentError,
    IdentificationError,
    LadingError,
    MemoryLimitError,
    identify,
    load_component,
    load_model,
    manager_of,
)
from lading.catalog import Extent, InputSpec, find_architecture
from lading.catalog.construction import build_on_meta, model_class, network_shapes

EXTENT = Extent(height=64, width=64, num_frames=5, tokens=8)


@dataclass(frozen=True)
class Case:
    """A network in a file.

    Attributes:
        layout: of the file.
        prefix: before every name in it.
    """

    family: str
    name: str
    layout: str
    config: dict[str, Any]
    prefix: str = ""
    suffix: str = ".safetensors"


CLIP = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 64} | {
    "feed_forward_proj": "gated-gelu"
}
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
WAN = {"num_attention_heads": 1, "attention_head_dim": 128, "in_channels": 4, "out_channels": 4} | {
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
}
Z_IMAGE = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 8, "axes_dims": [4, 6, 6]} | {
    "in_channels": 4
}
QWEN_TEXT = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CASES = {
    "FLUX.1": Case(
        "flux",
        "diffusers.FluxTransformer2DModel",
        "original",
        {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        | {"in_channels": 8, "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6)},
    ),
    "Wan": Case("wan", "diffusers.WanTransformer3DModel", "original", WAN),
    "Wan as .pth": Case("wan", "diffusers.WanTransformer3DModel", "original", WAN, suffix=".pth"),
    "Z-Image with a prefix": Case(
        "z_image", "diffusers.ZImageTransformer2DModel", "original", Z_IMAGE, "model.diffusion_model."
    ),
    "Qwen-Image with a prefix": Case(
        "qwen_image",
        "diffusers.QwenImageTransformer2DModel",
        "diffusers",
        {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 16, "out_channels": 4}
        | {"joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
        "model.diffusion_model.",
    ),
    "SD3": Case(
        "sd3",
        "diffusers.SD3Transformer2DModel",
        "original",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 1}
        | {"attention_head_dim": 64, "caption_projection_dim": 64, "joint_attention_dim": 16}
        | {"pooled_projection_dim": 8, "pos_embed_max_size": 8, "sample_size": 8, "qk_norm": "rms_norm"},
        "model.diffusion_model.",
    ),
    "UNet": Case("stable_diffusion", "diffusers.UNet2DConditionModel", "original", UNET, "model.diffusion_model."),
    "ae": Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", {**VAE, "latent_channels": 16}),
    "T5": Case("t5", "transformers.T5EncoderModel", "hub", T5),
    "UMT5 as .pth": Case("t5", "transformers.UMT5EncoderModel", "original", T5, suffix=".pth"),
    "CLIP": Case("clip", "transformers.CLIPTextModel", "hub (text_model. prefix)", CLIP),
    "OpenCLIP": Case(
        "clip",
        "transformers.CLIPTextModelWithProjection",
        "original",
        {**CLIP, "projection_dim": 128},
        "conditioner.embedders.1.model.",
    ),
    "Qwen2.5-VL": Case(
        "qwen",
        "transformers.Qwen2_5_VLForConditionalGeneration",
        "hub (before transformers 4.52)",
        {
            "text_config": {**QWEN_TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
            | {"out_hidden_size": 256, "patch_size": 14, "fullatt_block_indexes": [0]},
            "tie_word_embeddings": False,
        },
    ),
}


def write(folder: Path, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, torch.Tensor]]:
    """A network of random weights in the layout of a case: the file, and the weights in the network's own names."""
    network = network_shapes(build_on_meta(case.name, case.config))
    generator = torch.Generator().manual_seed(2)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) / 8 for name, shape in network.shapes.items()}
    twins = {name: group[0] for name, group in network.tied.items() if name != group[0]}
    file = folder / f"model{case.suffix}"
    save(file, in_layout(case, {name: tensor for name, tensor in tensors.items() if name not in twins}))
    return file, {**tensors, **{name: tensors[first] for name, first in twins.items()}}


def in_layout(case: Case, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's weights as a file of this layout holds them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    key_map = find_architecture(case.family, case.name).key_map(case.layout, shapes)
    stored = tensors.items() if key_map is None else key_map.inverse.tensors(tensors)
    return {case.prefix + name: tensor.clone().contiguous() for name, tensor in stored}


def save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)


def run(case: Case, network: Any) -> list[torch.Tensor]:
    """One forward on the example inputs of the catalog, filled with the same values each time."""
    make = find_architecture(case.family, case.name).example_inputs
    assert make is not None
    generator = torch.Generator().manual_seed(3)

    def fill(tree: Any) -> Any:
        if isinstance(tree, InputSpec):
            dtype = getattr(torch, tree.dtype)
            if dtype.is_floating_point:
                return torch.randn(tree.shape, generator=generator).to(network.dtype)
            return torch.ones(tree.shape, dtype=dtype)
        if isinstance(tree, dict):
            return {key: fill(value) for key, value in tree.items()}
        return [fill(value) for value in tree] if isinstance(tree, list) else tree

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library's forward thinks of its own arguments
        known = dict(network.config) if isinstance(network.config, Mapping) else {}  # transformers' is an object
        output = network(**fill(make({**case.config, **known}, EXTENT)))
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    found = [value for value in values if isinstance(value, torch.Tensor)]
    return found or list(values[0])


@pytest.mark.parametrize("label", CASES)
def test_a_bare_file_is_recognised_and_gives_back_every_value(tmp_path: Path, label: str) -> None:
    case = CASES[label]
    file, tensors = write(tmp_path, case)
    for use_disk_map in (False, True):
        network: Any = load_model(None, file, config=case.config, torch_dtype=None, use_disk_map=use_disk_map)
        assert type(network) is model_class(case.name)
        state = network.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensors[name]) for name in tensors)
        assert not network.training


@pytest.mark.parametrize("label", CASES)
def test_a_bare_file_streams_and_computes_what_the_resident_network_computes(tmp_path: Path, label: str) -> None:
    case = CASES[label]
    file, tensors = write(tmp_path, case, torch.bfloat16)
    options: dict[str, Any] = {"config": case.config, "torch_dtype": "float32" if label == "SD3" else None}
    network = model_class(case.name)
    expected = run(case, load_model(network, file, **options))
    with pytest.raises(MemoryLimitError) as too_small:
        load_model(network, file, **options, memory_limit=1000)
    limit = too_small.value.minimum
    for _ in range(3):
        streamed: Any = load_model(network, file, **options, memory_limit=limit)
        try:
            found = run(case, streamed)
            break
        except MemoryLimitError as error:  # the first call told what activations take
            limit = error.minimum
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert manager_of(streamed).plan.placement.slots
    state = streamed.state_dict()
    assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in tensors.items())


@pytest.fixture
def single_file(tmp_path: Path) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """A file of an SDXL's shape: UNet, autoencoder and two text encoders; and the weights of each."""
    parts = {
        "unet": CASES["UNet"],
        "vae": Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE, "first_stage_model."),
        "text_encoder": Case(
            "clip",
            "transformers.CLIPTextModel",
            "hub (text_model. prefix)",
            CLIP,
            "conditioner.embedders.0.transformer.",
        ),
        "text_encoder_2": CASES["OpenCLIP"],
    }
    whole: dict[str, torch.Tensor] = {}
    weights = {}
    for name, case in parts.items():
        shapes = network_shapes(build_on_meta(case.name, case.config)).shapes
        weights[name] = {key: torch.randn(shape).half() for key, shape in shapes.items()}
        whole |= in_layout(case, weights[name])
    save_file(whole, tmp_path / "single.safetensors")
    return tmp_path / "single.safetensors", weights


def test_each_network_of_a_single_file_is_loaded_by_its_name(
    single_file: tuple[Path, dict[str, dict[str, torch.Tensor]]],
) -> None:
    file, weights = single_file
    for name, tensors in weights.items():
        for limit in (None, "20MB"):
            state = load_component(file, name, torch_dtype="float16", memory_limit=limit).state_dict()
            assert state.keys() == tensors.keys()
            assert all(torch.equal(state[key], tensors[key]) for key in tensors)
    with pytest.raises(ComponentError, match="no component 'tokenizer': it holds unet"):
        load_component(file, "tokenizer")


def test_of_several_networks_a_class_or_a_candidate_picks_one(
    single_file: tuple[Path, dict[str, dict[str, torch.Tensor]]],
) -> None:
    file, weights = single_file
    with pytest.raises(IdentificationError, match="holds several networks, unet"):
        load_model(None, file)
    unet = load_model(UNet2DConditionModel, file, torch_dtype=None)
    assert torch.equal(unet.state_dict()["conv_in.weight"], weights["unet"]["conv_in.weight"])
    (candidate,) = [one for one in identify(file).candidates if one.component == "vae"]
    vae: Any = load_model(candidate, file, config={"scaling_factor": 0.5}, torch_dtype=None)
    assert type(vae) is AutoencoderKL
    assert vae.config.scaling_factor == 0.5


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    save_file({"mystery": torch.ones(3)}, tmp_path / "mystery.safetensors")
    with pytest.raises(IdentificationError, match="not recognised"):
        load_model(None, tmp_path / "mystery.safetensors")
    with pytest.raises(LadingError, match="'unet' is no class"):
        load_model("unet", tmp_path / "mystery.safetensors")
    with pytest.raises(LadingError, match="a state_dict_converter needs the class"):
        load_model("auto", tmp_path / "mystery.safetensors", state_dict_converter=dict)
