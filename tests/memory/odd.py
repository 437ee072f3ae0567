"""A module in which everything is that is hard to stream."""

from __future__ import annotations

import torch


class Odd(torch.nn.Module):
    """A tie, a fixed parameter, a module called twice, one never called, one skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(64))
        self.table = torch.nn.Embedding(50, 64)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(8))
        self.twice = torch.nn.Linear(64, 64)
        self.never = torch.nn.Linear(64, 64)
        self.borrowed = torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, 50, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("kept", torch.empty(64))
        self.register_buffer("computed", torch.arange(64.0), persistent=False)
        self.skip = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.table(tokens) * self.scale + self.kept + self.computed
        for number, block in enumerate(self.blocks):
            if not (self.skip and number == 3):
                state = torch.tanh(block(state))
            if number in (2, 6):
                state = self.twice(state)
        state = torch.nn.functional.linear(state, self.borrowed.weight)
        output: torch.Tensor = self.head(state)
        return output

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.table(tokens))
        return output
