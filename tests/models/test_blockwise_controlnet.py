"""The blockwise ControlNet of Qwen-Image: its names and shapes, its formula, recognition and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lading
from lading.catalog.construction import build_on_meta, verify_candidates
from lading.checkpoint.inventory import hash_layout
from lading.memory.trace import trace
from lading.models import QwenImageBlockwiseControlNet
from lading.models.blockwise_controlnet import ControlBlock
from tests.models.tiny import DIM, controlnet, noise, saved

NAME = "lading.models.QwenImageBlockwiseControlNet"
PUBLISHED = [({}, "073bce9cf969e317e5662cd570c3e79c"), ({"condition_channels": 68}, "a9e54e480a628f0b956a688a81c33bab")]


def header_only(config: dict[str, int], file: Path) -> Path:
    """A safetensors file of a network's names and shapes, with a hole where the data would be."""
    entries, end = {}, 0
    for name, tensor in build_on_meta(NAME, config).state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    return file


@pytest.mark.parametrize(("config", "digest"), PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_checkpoints(
    config: dict[str, int], digest: str, tmp_path: Path
) -> None:
    network = build_on_meta(NAME, config)
    assert hash_layout({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}) == digest
    assert lading.hash_model_file(header_only(config, tmp_path / "model.safetensors")) == digest


@pytest.mark.parametrize(("config", "digest"), PUBLISHED)
def test_a_published_checkpoint_is_recognised_from_its_header(
    config: dict[str, int], digest: str, tmp_path: Path
) -> None:
    checkpoint = lading.open_checkpoint(header_only(config, tmp_path / "model.safetensors"))
    found = lading.identify(tmp_path / "model.safetensors")
    (candidate,) = found.candidates
    assert (found.hash, candidate.match, found.problems) == (digest, "hash", ())
    assert (candidate.family, candidate.component, candidate.model_class) == ("qwen_image", "controlnet", NAME)
    assert candidate.config == {"num_layers": 60, "condition_channels": 64, "dim": 3072, **config}
    names = {model.rpartition("-")[2] for model in candidate.models}
    assert names == ({"Inpaint"} if config else {"Canny", "Depth"})
    assert verify_candidates(checkpoint, found) == {candidate: []}


def test_a_network_of_any_size_loads_with_the_config_that_its_file_tells(tmp_path: Path) -> None:
    network = controlnet(condition_channels=68)
    file = saved(network, tmp_path)
    (candidate,) = lading.identify(file).candidates
    loaded = lading.load_model(QwenImageBlockwiseControlNet, file, config=candidate.config, torch_dtype="float32")
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    assert not loaded.training


def formula(block: ControlBlock, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """The formula in float64 and without a module."""
    weights: dict[str, torch.Tensor] = {name: tensor.double() for name, tensor in block.state_dict().items()}

    def norm(stream: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return stream * weight / (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    mixed = norm(image, weights["x_rms.weight"]) + norm(condition, weights["y_rms.weight"])
    mixed = mixed @ weights["input_proj.weight"].T + weights["input_proj.bias"]
    mixed = mixed * (1 + torch.erf(mixed / 2**0.5)) / 2
    return mixed @ weights["output_proj.weight"].T + weights["output_proj.bias"]


def test_a_block_computes_the_formula() -> None:
    torch.manual_seed(0)
    block = ControlBlock(DIM)
    for norm in (block.x_rms, block.y_rms):
        torch.nn.init.normal_(norm.weight)
    image, condition = noise(1, 2, 6, DIM), 3 * noise(2, 1, 6, DIM)
    with torch.no_grad():
        expected = formula(block, image.double(), condition.double())
        torch.testing.assert_close(block(image, condition).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_whole_network_is_its_blocks_in_order() -> None:
    network = controlnet()
    image, condition = noise(1, 2, 6, DIM), noise(2, 1, 6, 64)
    with torch.no_grad():
        expected = image.double()
        projected = torch.nn.functional.linear(condition, network.img_in.weight, network.img_in.bias).double()
        for block in network.controlnet_blocks:
            assert isinstance(block, ControlBlock)
            expected = expected + formula(block, expected, projected)
        torch.testing.assert_close(network(image, condition).double(), expected, rtol=1e-4, atol=1e-5)


class Followed(torch.nn.Module):
    """A block of the transformer with a control block behind it."""

    def __init__(self, block: torch.nn.Module, control: torch.nn.Module) -> None:
        super().__init__()
        self.block, self.control = block, control

    def forward(self, condition: torch.Tensor, **inputs: Any) -> torch.Tensor:
        image: torch.Tensor = self.block(**inputs)[1]
        added: torch.Tensor = image + self.control(image, condition)
        return added


def test_a_control_block_needs_no_more_activations_than_the_block_before_it() -> None:
    """So a transformer's plan, which is made without ControlNets, holds with them."""
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

    with torch.device("meta"):
        block = QwenImageTransformerBlock(dim=3072, num_attention_heads=24, attention_head_dim=128).bfloat16()
        followed = Followed(block, ControlBlock(3072).bfloat16())
        inputs = {
            "hidden_states": torch.empty(1, 1024, 3072, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.empty(1, 64, 3072, dtype=torch.bfloat16),
            "encoder_hidden_states_mask": None,
            "temb": torch.empty(1, 3072, dtype=torch.bfloat16),
            "image_rotary_emb": (
                torch.empty(1024, 64, dtype=torch.complex64),
                torch.empty(64, 64, dtype=torch.complex64),
            ),
        }
        condition = torch.empty(1, 1024, 3072, dtype=torch.bfloat16)
    alone = trace(block, kwargs=inputs).activation_bytes
    both = trace(followed, kwargs={**inputs, "condition": condition}).activation_bytes
    assert both <= alone + condition.nbytes
