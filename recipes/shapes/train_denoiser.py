"""Train the denoiser and the text encoder of the ``shapes`` model together, on latents of drawn pictures."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from recipes.shapes.pictures import Caption, draw_random, split_triples
from recipes.shapes.tokenizer import MAX_LENGTH
from recipes.shapes.train_vae import encode

STEPS = 4800
BATCH = 64
PICTURES = 16_000
LEARNING_RATE = 1.2e-3
WITHOUT_PROMPT = 0.1
WITHOUT_SIZE = 1 / 3
EMA_DECAY = 0.998


def build_scheduler() -> DDIMScheduler:
    """Velocity prediction that ends in pure noise: with a leaking schedule every background would come out gray."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    )


def build_unet() -> UNet2DConditionModel:
    """A denoiser of 4 x 8 x 8 latents, about 4.3 million parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of two layers, about half a million parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_denoiser(vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path, seed: int) -> None:
    """Train and save the averaged weights to ``folder``/unet and ``folder``/text_encoder."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed + 2)
    means, deviations, triples, sizes = _latents(vae, generator, seed)
    scheduler = build_scheduler()
    unet, text_encoder = build_unet().train(), build_text_encoder(tokenizer).train()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    averages = [copy.deepcopy(part).eval().requires_grad_(False) for part in (unet, text_encoder)]
    averaged = [parameter for part in averages for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.06)
    start, losses = time.monotonic(), []
    for step in range(STEPS):
        chosen = generator.integers(PICTURES, size=BATCH)
        latents = means[chosen] + deviations[chosen] * torch.randn(BATCH, 4, 8, 8)
        latents = latents * vae.config.scaling_factor
        prompts = [_prompt(triples[index], sizes[index], generator) for index in chosen]
        loss = _velocity_loss(unet, text_encoder, scheduler, latents, _tokens(tokenizer, prompts))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(averaged, [parameter.detach() for parameter in parameters], 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            print(f"denoiser {step + 1}/{STEPS}  loss {np.mean(losses[-100:]):.4f}  {minutes:.1f} min", flush=True)
        if (step + 1) % 400 == 0 or step + 1 == STEPS:
            for part, name in zip(averages, ("unet", "text_encoder"), strict=True):
                part.save_pretrained(folder / name)


def _latents(
    vae: AutoencoderKL, generator: np.random.Generator, seed: int
) -> tuple[torch.Tensor, torch.Tensor, list[Caption], list[str]]:
    """Draw pictures of the training triples and encode them: means, deviations, what they show, sizes."""
    pictures, triples, sizes = draw_random(split_triples(seed).training, PICTURES, generator)
    encoded = [encode(vae, pictures[start : start + 64]) for start in range(0, PICTURES, 64)]
    means, deviations = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return means, deviations, [Caption(triple, None) for triple in triples], sizes


def _prompt(caption: Caption, size: str, generator: np.random.Generator) -> str:
    """A picture's prompt: at times without its size, at times empty, which guidance needs."""
    if generator.random() < WITHOUT_PROMPT:
        return ""
    return str(caption if generator.random() < WITHOUT_SIZE else Caption(caption.triple, size))


def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    encoded = tokenizer(prompts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    tokens: torch.Tensor = encoded.input_ids
    return tokens


def _velocity_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    noise = torch.randn_like(latents)
    steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
    noisy = scheduler.add_noise(latents, noise, steps)
    velocity = scheduler.get_velocity(latents, noise, steps)
    text = text_encoder(tokens).last_hidden_state
    predicted = unet(noisy, steps, encoder_hidden_states=text).sample
    return torch.nn.functional.mse_loss(predicted, velocity)
