"""What a denoiser is to predict, taken from its scheduler's config: epsilon, velocity, the sample, or the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)

from lading.errors import ComponentError, LadingError
from lading.training.settings import Settings

_SEQUENCE = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""Entries of a scheduler's config, and what pipelines take where it leaves them out."""


@dataclass(frozen=True)
class Task:
    """One batch of what a denoiser is asked.

    Attributes:
        noisy: latents with noise.
        target: what it is to predict, of the same shape.
        timesteps: of the scheduler, one to each example.
        weights: of each example's squared error.
    """

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor


class Objective(Protocol):
    """How noise is added, and what is to be predicted."""

    def draw(self, generator: torch.Generator, tokens: int) -> torch.Tensor:
        """Draw one moment: a timestep, or a share of noise. `tokens` are those of the latent."""

    def task(self, latents: torch.Tensor, noise: torch.Tensor, moments: torch.Tensor) -> Task:
        """Add noise at the moments, one to each latent of the batch."""


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion: epsilon, velocity or the sample is predicted.

    Source of the weights: Hang et al. 2023, arXiv:2303.09556 (min-SNR), for velocity divided by SNR + 1.
    """

    schedule: Any
    prediction: str
    weighting: str
    gamma: float

    def draw(self, generator: torch.Generator, tokens: int) -> torch.Tensor:
        return torch.randint(0, self.schedule.config.num_train_timesteps, (), generator=generator)

    def task(self, latents: torch.Tensor, noise: torch.Tensor, moments: torch.Tensor) -> Task:
        noisy = self.schedule.add_noise(latents, noise, moments)
        if self.prediction == "epsilon":
            target = noise
        elif self.prediction == "sample":
            target = latents
        else:
            target = self.schedule.get_velocity(latents, noise, moments)
        return Task(noisy, target, moments, self._weights(moments))

    def _weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(len(timesteps), device=timesteps.device)
        if self.weighting == "none":
            return ones
        snr: torch.Tensor = compute_snr(self.schedule, timesteps)
        clipped = snr.clamp(max=self.gamma)
        if self.prediction == "sample":
            return clipped
        if self.prediction == "v_prediction":
            return clipped / (snr + 1)
        return torch.where(snr == 0, ones, clipped / snr.clamp(min=1e-20))


@dataclass(frozen=True)
class Flow:
    """Flow matching: the way from the sample to the noise is predicted.

    Source: Esser et al. 2024, arXiv:2403.03206.

    Attributes:
        timesteps: of the scheduler; the last is pure noise.
        shift: of noise levels: a factor, or what the scheduler's config says by the number of tokens.
    """

    timesteps: int
    density: str
    logit_mean: float
    logit_std: float
    weighting: str
    shift: float | DynamicShift

    def draw(self, generator: torch.Generator, tokens: int) -> torch.Tensor:
        level: torch.Tensor = compute_density_for_timestep_sampling(
            self.density, 1, self.logit_mean, self.logit_std, 1.29, generator=generator
        )[0]
        if isinstance(self.shift, DynamicShift):
            return self.shift(level, tokens)
        return self.shift * level / (1 + (self.shift - 1) * level)

    def task(self, latents: torch.Tensor, noise: torch.Tensor, moments: torch.Tensor) -> Task:
        level = moments.reshape(-1, *[1] * (latents.ndim - 1))
        noisy = (1 - level) * latents + level * noise
        weights = compute_loss_weighting_for_sd3(self.weighting, moments)
        return Task(noisy, noise - latents, moments * self.timesteps, weights)


@dataclass(frozen=True)
class DynamicShift:
    """Noise levels that rise with the number of tokens, as the scheduler's config says."""

    base_tokens: int
    max_tokens: int
    base: float
    max: float
    kind: str

    def __call__(self, level: torch.Tensor, tokens: int) -> torch.Tensor:
        slope = (self.max - self.base) / (self.max_tokens - self.base_tokens)
        mu = self.base + slope * (tokens - self.base_tokens)
        factor = mu if self.kind == "linear" else math.exp(mu)
        return factor * level / (1 + (factor - 1) * level)


def make_objective(scheduler: Any, settings: Settings) -> Objective:
    """Return what a scheduler's config says that the denoiser predicts.

    Raises:
        ComponentError: it says something that cannot be trained here.
        LadingError: a setting does not go with it.
    """
    config = scheduler.config
    prediction = config.get("prediction_type", "flow_prediction")
    flows = "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas") or prediction == "flow_prediction"
    known = ("none", "sigma-sqrt", "cosmap") if flows else ("none", "min-snr")
    if settings.weighting not in known:
        kind = "flow matching" if flows else "diffusion"
        raise LadingError(f"weighting {settings.weighting!r} is none for {kind}: use {' or '.join(known)}")
    if flows:
        density = (settings.timesteps or "logit-normal").replace("-", "_")
        return Flow(
            config["num_train_timesteps"],
            _known_density(density),
            settings.logit_mean,
            settings.logit_std,
            settings.weighting.replace("-", "_"),
            settings.shift if settings.shift is not None else _shift(config),
        )
    if prediction not in ("epsilon", "v_prediction", "sample") or not hasattr(scheduler, "alphas_cumprod"):
        raise ComponentError(
            f"{type(scheduler).__name__} with prediction_type {prediction!r}: denoisers are trained to predict "
            "epsilon, v_prediction, sample or the flow"
        )
    if settings.timesteps not in (None, "uniform"):
        raise LadingError(f"timesteps {settings.timesteps!r} are for flow matching: leave it out")
    return Diffusion(DDPMScheduler.from_config(config), prediction, settings.weighting, settings.snr_gamma)


def _known_density(name: str) -> str:
    known = ("uniform", "logit_normal", "mode")
    if name not in known:
        raise LadingError(f"timesteps {name!r} are not known: use {', '.join(known).replace('_', '-')}")
    return name


def _shift(config: Any) -> float | DynamicShift:
    if config.get("use_dynamic_shifting"):
        base_tokens, max_tokens, base, most = (config.get(name, usual) for name, usual in _SEQUENCE.items())
        return DynamicShift(base_tokens, max_tokens, base, most, config.get("time_shift_type", "exponential"))
    return float(config.get("flow_shift") or config.get("shift") or 1.0)
