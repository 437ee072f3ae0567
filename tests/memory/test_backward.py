"""Gradients through a frozen network whose weights are streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

from lading import load_model, manage, manager_of
from lading.memory.trace import trace


def inputs() -> dict[str, Any]:
    """Return a call's arguments, always the same."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": noise(1, 16, 4),
        "encoder_hidden_states": noise(1, 8, 32),
        "pooled_projections": noise(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small FLUX.1."""
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
    ).save_pretrained(folder)
    return folder


def learner(network: Path, checkpointed: bool, memory_limit: str | None = None) -> FluxTransformer2DModel:
    """Load the network with an adapter that learns."""
    model = load_model(FluxTransformer2DModel, network, torch_dtype="float32").requires_grad_(False)
    if memory_limit is not None:
        manage(model, memory_limit, example_inputs=inputs())
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v", "proj_mlp"], init_lora_weights="gaussian"))
    if checkpointed:
        model.enable_gradient_checkpointing()
        model.train()
    return model


def learn(model: FluxTransformer2DModel, steps: int = 3) -> list[torch.Tensor]:
    """Take steps, and return what the adapter has become."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs()).sample.square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in learning]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_adapters_learn_the_same_and_the_backward_pass_finds_its_weights_on_their_way(
    network: Path, checkpointed: bool
) -> None:
    expected = learn(learner(network, checkpointed))
    model = learner(network, checkpointed, "20MB")
    found = learn(model)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert manager_of(model).plan.placement.slots
    assert manager_of(model).stats().diverged == 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_plan_of_a_call_that_gradients_come_back_through_counts_what_is_saved(
    network: Path, checkpointed: bool
) -> None:
    model = learner(network, checkpointed, "20MB")
    with torch.no_grad():
        model(**inputs())
    without = manager_of(model).plan
    model(**inputs()).sample.sum().backward()
    assert manager_of(model).plan.activation_bytes > without.activation_bytes
    assert manager_of(model).plan.peak_bytes <= 20_000_000


def test_checkpointed_activations_take_less_and_their_blocks_run_again(network: Path) -> None:
    plain = trace(learner(network, False), (), inputs(), backward=True)
    checkpointed = trace(learner(network, True), (), inputs(), backward=True)
    assert checkpointed.activation_bytes < plain.activation_bytes
    assert checkpointed.calls == plain.calls
    assert sum(call.flops for call in checkpointed.backward) > sum(call.flops for call in plain.backward)
    assert checkpointed.backward[0].leaf == plain.backward[0].leaf == "proj_out"


def test_weights_that_move_before_the_backward_pass_are_an_error_and_no_wrong_gradient(network: Path) -> None:
    model = learner(network, False, "20MB")
    loss = model(**inputs()).sample.sum()
    manager_of(model).set_limit("16MB")
    with torch.no_grad():
        model(**inputs())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
