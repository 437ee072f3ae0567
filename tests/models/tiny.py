"""Qwen-Image so small that it runs in a moment: real classes, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from safetensors.torch import save_file

from lading.models import QwenImageBlockwiseControlNet

LAYERS = 4
DIM = 48
PROMPT = 24


def transformer() -> Any:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        num_layers=LAYERS,
        attention_head_dim=24,
        num_attention_heads=2,
        joint_attention_dim=PROMPT,
        axes_dims_rope=(8, 8, 8),
    ).eval()


def controlnet(seed: int = 1, **config: int) -> QwenImageBlockwiseControlNet:
    torch.manual_seed(seed)
    return QwenImageBlockwiseControlNet(**{"num_layers": LAYERS, "dim": DIM, **config}).eval()


def saved(network: QwenImageBlockwiseControlNet, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def pipeline() -> Any:
    torch.manual_seed(2)
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    made = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, transformer())
    made.set_progress_bar_config(disable=True)
    return made


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(made: Any, steps: int = 3, height: int = 32, width: int = 48, **options: Any) -> torch.Tensor:
    """The latents that a pipeline draws."""
    latents: torch.Tensor = made(
        prompt_embeds=noise(3, 1, 5, PROMPT),
        prompt_embeds_mask=torch.ones(1, 5, dtype=torch.long),
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
        **options,
    ).images
    return latents


def call(denoiser: Any, pictures: int = 1, batch: int = 1) -> torch.Tensor:
    """One call of a transformer on noise for pictures of 2 x 3 tokens, of which all but the first are edited."""
    with torch.no_grad():
        output: torch.Tensor = denoiser(
            hidden_states=noise(5, batch, 6 * pictures, 64),
            encoder_hidden_states=noise(6, batch, 5, PROMPT),
            encoder_hidden_states_mask=torch.ones(batch, 5, dtype=torch.long),
            timestep=torch.full((batch,), 0.5),
            img_shapes=[[(1, 2, 3)] * pictures] * batch,
            return_dict=False,
        )[0]
    return output


def picture(seed: int = 7, width: int = 48, height: int = 32) -> Image.Image:
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())
