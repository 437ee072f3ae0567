"""Bare files in original layouts: recognised, mapped, and bit for bit the network that was written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from lading import (
    CheckpointError,
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
from lading.catalog.construction import model_class
from tests.loading.networks import CASES, CLIP, VAE, Case, in_layout, random_weights, write

EXTENT = Extent(height=64, width=64, num_frames=5, tokens=8)


def run(case: Case, network: Any) -> list[torch.Tensor]:
    """One forward on the example inputs of the catalog, filled with the same values each time."""
    make = find_architecture(case.family, case.name).example_inputs
    assert make is not None
    generator = torch.Generator().manual_seed(3)
    kind = next(network.parameters()).dtype

    def fill(tree: Any) -> Any:
        if isinstance(tree, InputSpec):
            dtype = getattr(torch, tree.dtype)
            if dtype.is_floating_point:
                return torch.randn(tree.shape, generator=generator).to(kind)
            return torch.ones(tree.shape, dtype=dtype)
        if isinstance(tree, dict):
            return {key: fill(value) for key, value in tree.items()}
        return [fill(value) for value in tree] if isinstance(tree, list) else tree

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library's forward thinks of its own arguments
        config = getattr(network, "config", None)
        known = dict(config) if isinstance(config, Mapping) else {}  # transformers' is an object
        output = network(**fill(make({**case.config, **known}, EXTENT)))
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    values = (values,) if isinstance(values, torch.Tensor) else values
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
    weights = {name: random_weights(case, torch.float16) for name, case in parts.items()}
    for name, case in parts.items():
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
    with pytest.raises(ComponentError, match=r"no component 'tokenizer': it holds .*unet"):
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


def test_a_wrong_class_and_missing_tensors_are_named(tmp_path: Path) -> None:
    case = CASES["T5"]
    file, tensors = write(tmp_path, case)
    with pytest.raises(IdentificationError, match=r"holds no diffusers.AutoencoderKL, but transformers.T5"):
        load_model(AutoencoderKL, file)
    absent = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({name: tensor for name, tensor in in_layout(case, tensors).items() if name != absent}, file)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .* missing \(1\): {re.escape(absent)}"):
        load_model(model_class(case.name), file)


def test_a_class_that_uses_less_than_the_file_holds_is_filled_from_it(tmp_path: Path) -> None:
    case = Case("clip", "transformers.CLIPTextModelWithProjection", "hub", {**CLIP, "projection_dim": 128})
    file, tensors = write(tmp_path, case)
    state = load_model(CLIPTextModel, file, torch_dtype=None).state_dict()
    assert len(state) == len(tensors) - 1
    assert all(torch.equal(tensor, tensors[f"text_model.{name}"]) for name, tensor in state.items())
