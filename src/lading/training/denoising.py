"""A denoiser as training calls it: noisy latents and moments in, predictions out, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from lading.latents import LatentShape, pack, unpack
from lading.training.conditions import Conditions, collate
from lading.training.rehearsal import TIMESTEP_RULES, DenoiserRules


class Denoiser:
    """A network, called as its pipeline calls it.

    It does not care whether the network's weights are resident or streamed, or whether it is wrapped for several
    processes.

    Args:
        network: what is called; its parameters may be in any dtype.
        timesteps: of the scheduler.
        dtype: in which it computes; other than float32, under autocast.
    """

    def __init__(
        self, network: torch.nn.Module, rules: DenoiserRules, timesteps: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.network = network
        self._rules = rules
        self._last = float(timesteps)
        self._dtype = dtype
        self._device = device

    def __call__(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Sequence[Conditions], shape: LatentShape
    ) -> torch.Tensor:
        """Return the prediction, in float32 and of the shape of the noisy latents.

        Args:
            noisy: by the axes of `shape`.
            timesteps: of the scheduler, one to each latent.
            conditions: of one signature, one to each latent.
            shape: of the batch.
        """
        rules = self._rules
        given = collate(conditions, rules.batched).to(self._device)
        latents: Any = noisy.to(self._dtype)
        latents = pack(latents, shape) if shape.layout.packed else latents
        if rules.listed:
            latents = list(latents.unsqueeze(2).unbind(0))
        timestep = TIMESTEP_RULES[rules.timestep_rule](timesteps, self._last)
        timestep = timestep.reshape(-1, *[1] * len(given.timestep_shape)).expand(-1, *given.timestep_shape)
        arguments = {**given.arguments, rules.latents: latents, rules.timestep: timestep}
        with self.precision():
            output = self.network(**arguments, return_dict=False)[0]
        if rules.listed:
            output = torch.stack([latent.float() for latent in output]).squeeze(2)
        output = unpack(output.float(), shape) if shape.layout.packed else output.float()
        return -output if rules.negated else output

    def precision(self) -> Any:
        """Return the context in which the network computes in its dtype, with adapters that are held in float32."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)
