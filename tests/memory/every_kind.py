"""A network with everything that is hard to keep track of, its checkpoint, and the map of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lading import AutoWrappedLinear, AutoWrappedModule


class Block(nn.Module):
    """Holds a parameter of its own beside its children, and reads a child's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(16) / 4)
        self.norm = nn.LayerNorm(16)
        self.project = nn.Linear(16, 16)
        self.rms = nn.RMSNorm(16)
        self.gate = nn.Linear(16, 16, bias=False)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        inner = self.project(self.norm(state.to(self.project.weight.dtype)) + self.shift)
        return state + torch.tanh(self.rms(inner) @ self.gate.weight)


class EveryKind(nn.Module):
    """A tie, parameters held by containers, buffers that are stored and computed, layers that no map names."""

    computed: torch.Tensor

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.table = nn.Embedding(24, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.groups = nn.GroupNorm(4, 16)
        self.batch = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 24, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("computed", torch.arange(16.0) / 16, persistent=False)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.table(tokens) * self.scale
        return state + self.computed.to(state.dtype)

    def scaled(self, state: torch.Tensor) -> torch.Tensor:
        """Reads a parameter that no layer holds, and calls none."""
        return state * self.scale

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.encode(tokens)
        for block in self.blocks:
            state = block(state)
        state = self.batch(self.groups(self.mix(state.transpose(1, 2)))).transpose(1, 2)
        output: torch.Tensor = self.head(state)
        return output


LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: AutoWrappedLinear,
    nn.LayerNorm: AutoWrappedModule,
    nn.RMSNorm: AutoWrappedModule,
    nn.Conv1d: AutoWrappedModule,
    nn.Embedding: AutoWrappedModule,
    nn.BatchNorm1d: AutoWrappedModule,
}
TOKENS = torch.arange(20).reshape(2, 10)


def every_kind(dtype: torch.dtype = torch.float32) -> EveryKind:
    """Return the network with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EveryKind().to(dtype).eval().requires_grad_(False)


def save(model: nn.Module, folder: Path) -> Path:
    """Write a network's checkpoint, each tied weight once."""
    file = folder / "model.safetensors"
    tensors = dict(model.state_dict())
    tensors.pop("head.weight", None)
    save_file(tensors, file)
    return file


def vram_config(
    offload: str, onload: str, preparing: str, computation: str, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Return the eight keys for devices in the order of the states, all in one dtype."""
    places = {"offload": offload, "onload": onload, "preparing": preparing, "computation": computation}
    config: dict[str, Any] = {}
    for state, device in places.items():
        config |= {f"{state}_device": device, f"{state}_dtype": "disk" if device == "disk" else dtype}
    return config
