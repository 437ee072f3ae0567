"""Train the autoencoder of the ``shapes`` model on drawn pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from recipes.shapes.pictures import Pictures, draw_random, split_triples

BATCH = 16
PICTURES = 12_000
KL_WEIGHT = 3e-5


Indices = npt.NDArray[np.int64]


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


DECODER_STAGE = Stage(steps=1200, learning_rate=8e-4, figure_weight=0.5, edge_weight=1.0)
"""The last stage trains the decoder alone, on latents that are fixed and a little wrong, as a denoiser's are."""
LATENT_NOISE = 0.1
"""Standard deviation of what is added to latents in that stage; their own is about 3.5."""


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
    latents = torch.cat([encode(vae, pictures[start : start + 64])[0] for start in range(0, PICTURES, 64)])
    vae.register_to_config(scaling_factor=round(1 / latents[:2048].std().item(), 4))
    refine_decoder(vae, pictures, latents, seed + len(STAGES))
    vae.save_pretrained(folder)
    return vae


def run_stage(vae: AutoencoderKL, stage: Stage, pictures: Pictures, seed: int) -> None:
    """Train the whole autoencoder for one stage."""
    torch.manual_seed(seed)
    vae.train()

    def loss(chosen: Indices) -> torch.Tensor:
        pixels = to_pixels(pictures[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        kl: torch.Tensor = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return reconstruction_loss(output.float(), pixels, stage) + KL_WEIGHT * kl.mean()

    optimize(list(vae.parameters()), loss, stage, seed)


def refine_decoder(vae: AutoencoderKL, pictures: Pictures, latents: torch.Tensor, seed: int) -> None:
    """Train the decoder alone; the encoder, and with it every latent, stays as it is."""
    torch.manual_seed(seed)

    def loss(chosen: Indices) -> torch.Tensor:
        noisy = latents[chosen] + LATENT_NOISE * torch.randn(BATCH, *latents.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(noisy).sample
        return reconstruction_loss(output.float(), to_pixels(pictures[chosen]), DECODER_STAGE)

    optimize([*vae.decoder.parameters(), *vae.post_quant_conv.parameters()], loss, DECODER_STAGE, seed)


def reconstruction_loss(output: torch.Tensor, pixels: torch.Tensor, stage: Stage) -> torch.Tensor:
    """The weighted sum of the mean error, the error inside the shape, and the error of its edges."""
    difference = output - pixels
    error = difference.abs()
    figure = ((pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
    inside = (error * figure).sum((1, 2, 3)) / (3 * figure.sum((1, 2, 3)))
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    loss: torch.Tensor = error.mean() + stage.figure_weight * inside.mean() + stage.edge_weight * edges
    return loss


def optimize(
    parameters: list[torch.nn.Parameter], loss: Callable[[Indices], torch.Tensor], stage: Stage, seed: int
) -> None:
    """Minimise a loss of random batches of pictures for the steps of a stage."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.learning_rate, total_steps=stage.steps, pct_start=0.08
    )
    start = time.monotonic()
    for step in range(1, stage.steps + 1):
        value = loss(generator.integers(PICTURES, size=BATCH))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            print(f"autoencoder {step}/{stage.steps}  loss {value.item():.4f}  {minutes:.1f} min", flush=True)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the pictures' unscaled latents, each (count, 4, 8, 8)."""
    posterior = vae.encode(to_pixels(pictures)).latent_dist
    return posterior.mean, posterior.std
