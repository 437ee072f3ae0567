"""Train the autoencoder of the ``shapes`` model on drawn pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from recipes.shapes.pictures import Pictures, draw_random, split_triples

BATCH = 16
PICTURES = 12_000
KL_WEIGHT = 3e-5


@dataclass(frozen=True)
class Stage:
    """A stretch of the training.

    Attributes:
        figure_weight: of the error inside the shape, averaged over its own area. Plain averaging leaves the colour of
            a small shape, a tenth of the picture, almost free.
        edge_weight: of the error of differences between neighbouring pixels, which keeps corners sharp.
    """

    steps: int
    learning_rate: float
    figure_weight: float
    edge_weight: float


STAGES = (
    Stage(steps=2000, learning_rate=1.5e-3, figure_weight=0.0, edge_weight=0.0),
    Stage(steps=2000, learning_rate=1.2e-3, figure_weight=0.5, edge_weight=0.0),
    Stage(steps=1500, learning_rate=1e-3, figure_weight=0.5, edge_weight=1.0),
)


def build_vae() -> AutoencoderKL:
    """An autoencoder from 3 x 64 x 64 pixels to 4 x 8 x 8 latents, about one million parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def to_pixels(pictures: Pictures) -> torch.Tensor:
    """(count, height, width, 3) in 0..255 to (count, 3, height, width) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(folder: Path, seed: int) -> AutoencoderKL:
    """Train, save to ``folder`` and return the autoencoder, its scaling factor set from the latents it makes."""
    torch.manual_seed(seed)
    pictures, _, _ = draw_random(split_triples(seed).training, PICTURES, np.random.default_rng(seed))
    vae = build_vae()
    for number, stage in enumerate(STAGES):
        run_stage(vae, stage, pictures, seed + number)
        vae.save_pretrained(folder)
    vae.eval()
    latents = torch.cat([encode(vae, pictures[start : start + 64])[0] for start in range(0, 2048, 64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(folder)
    return vae


def run_stage(vae: AutoencoderKL, stage: Stage, pictures: Pictures, seed: int) -> None:
    """Train for the steps of one stage, with an optimizer of its own."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    vae.train()
    rate = stage.learning_rate
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=stage.steps, pct_start=0.08)
    start = time.monotonic()
    for step in range(1, stage.steps + 1):
        pixels = to_pixels(pictures[generator.integers(len(pictures), size=BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        difference = output.float() - pixels
        error = difference.abs()
        figure = ((pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
        inside = (error * figure).sum((1, 2, 3)) / (3 * figure.sum((1, 2, 3)))
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss = error.mean() + stage.figure_weight * inside.mean() + stage.edge_weight * edges + KL_WEIGHT * kl
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            errors = f"L1 {error.mean().item():.4f}  inside {inside.mean().item():.4f}  edges {edges.item():.4f}"
            print(f"vae {step}/{stage.steps}  {errors}  {(time.monotonic() - start) / 60:.1f} min", flush=True)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the pictures' unscaled latents, each (count, 4, 8, 8)."""
    posterior = vae.encode(to_pixels(pictures)).latent_dist
    return posterior.mean, posterior.std
