"""Repeated blocks may be compiled, before or after the limit is set, and stream without compiling again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from lading import load_model, manager_of

CONFIG = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "in_channels": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flux")
    FluxTransformer2DModel(**CONFIG).eval().save_pretrained(folder)
    return folder


def run(model: Any, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(1, 12, 16, generator=generator).requires_grad_(grad)
    output: torch.Tensor = model(
        hidden_states=state,
        encoder_hidden_states=torch.randn(1, 6, 32, generator=generator),
        pooled_projections=torch.randn(1, 16, generator=generator),
        timestep=torch.tensor([0.5]),
        img_ids=torch.zeros(12, 3),
        txt_ids=torch.zeros(6, 3),
    ).sample
    if not grad:
        return output
    torch.autograd.backward(output.square().sum())
    assert state.grad is not None
    return state.grad


@pytest.mark.parametrize("early", [True, False])
def test_compiled_blocks_stream_and_compile_once(folder: Path, early: bool) -> None:
    resident = load_model(FluxTransformer2DModel, folder, torch_dtype="float32")
    streamed = load_model(FluxTransformer2DModel, folder, torch_dtype="float32", memory_limit="1MB")
    torch._dynamo.reset()
    with torch.no_grad():
        if not early:
            assert torch.equal(run(streamed), run(resident))
        for model in (resident, streamed):
            model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        expected = run(resident)
        assert torch.equal(run(streamed), expected)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        manager_of(streamed).set_limit("800kB")
        for _ in range(2):
            assert torch.equal(run(streamed), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert manager_of(streamed).plan.placement.slots
    assert manager_of(streamed).stats().diverged == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own look at its inputs
def test_gradients_flow_through_compiled_blocks_that_stream(folder: Path) -> None:
    resident = load_model(FluxTransformer2DModel, folder, torch_dtype="float32").requires_grad_(False)
    streamed = load_model(FluxTransformer2DModel, folder, torch_dtype="float32", memory_limit="1.4MB")
    torch._dynamo.reset()
    for model in (resident, streamed):
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    assert torch.equal(run(streamed, grad=True), run(resident, grad=True))
    assert manager_of(streamed).plan.placement.slots
