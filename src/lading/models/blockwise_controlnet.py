"""The blockwise ControlNet of Qwen-Image: a small network beside each block of the transformer.

Names, shapes and formula are those of DiffSynth-Studio's checkpoints Qwen-Image-Blockwise-ControlNet-Canny, -Depth and
-Inpaint. https://github.com/modelscope/DiffSynth-Studio
"""

from __future__ import annotations

import torch
from diffusers.models.normalization import RMSNorm
from torch import nn

_EPSILON = 1e-6


class ControlBlock(nn.Module):
    """What one block adds to the image stream: both streams normed, summed, and through two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x_rms = RMSNorm(dim, eps=_EPSILON)
        self.y_rms = RMSNorm(dim, eps=_EPSILON)
        self.input_proj = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the residual of an image stream, (batch, tokens, dim), for a condition of the same width."""
        mixed: torch.Tensor = self.input_proj(self.x_rms(hidden_states) + self.y_rms(condition))
        residual: torch.Tensor = self.output_proj(self.act(mixed))
        return residual


class QwenImageBlockwiseControlNet(nn.Module):
    """The blockwise ControlNet of Qwen-Image; `attach` plugs it into a pipeline.

    Args:
        num_layers: blocks, one for each of the transformer's.
        condition_channels: of a token of the condition: 64 for a picture, 68 for a picture and a mask.
        dim: width of the transformer's image stream.

    >>> network = QwenImageBlockwiseControlNet(num_layers=2, dim=8)
    >>> network(torch.ones(1, 4, 8), torch.ones(1, 4, 64)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, num_layers: int = 60, condition_channels: int = 64, dim: int = 3072) -> None:
        super().__init__()
        self.condition_channels = condition_channels
        self.dim = dim
        self.img_in = nn.Linear(condition_channels, dim)
        self.controlnet_blocks = nn.ModuleList(ControlBlock(dim) for _ in range(num_layers))

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the image stream after all blocks, as if the transformer's own changed nothing.

        A pipeline needs the blocks one by one; this is the order in which they run, for plans and traces.

        Args:
            hidden_states: the image stream, (batch, tokens, dim).
            condition: (batch, tokens, condition_channels).
        """
        projected = self.img_in(condition)
        for block in self.controlnet_blocks:
            hidden_states = hidden_states + block(hidden_states, projected)
        return hidden_states
