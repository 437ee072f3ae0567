"""Train the autoencoder of the ``shapes`` model on drawn pictures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from recipes.shapes.pictures import Pictures, draw_random, split_triples

STEPS = 3000
BATCH = 16
PICTURES = 12_000
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 3e-5


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
    generator = np.random.default_rng(seed)
    pictures, _, _ = draw_random(split_triples(seed).training, PICTURES, generator)
    vae = build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.08)
    start = time.monotonic()
    for step in range(STEPS):
        pixels = to_pixels(pictures[generator.integers(PICTURES, size=BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        reconstruction = (output.float() - pixels).abs().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(reconstruction + KL_WEIGHT * kl)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            print(
                f"vae {step + 1}/{STEPS}  L1 {reconstruction.item():.4f}  KL {kl.item():.2f}  {minutes:.1f} min",
                flush=True,
            )
        if (step + 1) % 1000 == 0:
            vae.save_pretrained(folder)
    vae.eval()
    latents = torch.cat([encode(vae, pictures[i : i + 64])[0] for i in range(0, 2048, 64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the pictures' unscaled latents, each (count, 4, 8, 8)."""
    posterior = vae.encode(to_pixels(pictures)).latent_dist
    return posterior.mean, posterior.std
