"""An average of the weights over the steps, which varies less than they do."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Average:
    """An exponential moving average of trained parameters, held in float32.

    Its decay rises to the one that is asked for, so that the first steps are soon forgotten: after step n it is at most
    (1 + n) / (10 + n).
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone().float() for name, tensor in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.Tensor], step: int) -> None:
        """Take in the parameters after a step, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(parameters[name].detach().float(), share)
