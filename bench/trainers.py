"""Programs that train a LoRA on SD1.5's UNet for some steps: the loop of diffusers' script, and lading's.

`python -m bench.trainers WAY FOLDER STEPS [LIMIT]` prints what it took, as JSON. Both hold the base and the adapters in
float32, and see one latent of 64 x 64 and 77 tokens at a step; gradients are clipped, AdamW takes the steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from bench.steps import figure_of

RANK, RATE, LATENT, TEXT = 4, 1e-4, (1, 4, 64, 64), (1, 77, 768)
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def diffusers_loop(folder: Path, steps: int, _limit: int | None) -> list[float]:
    """Steps as `train_text_to_image_lora.py` of diffusers makes them; returns the seconds of each."""
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    cast_training_params(unet, dtype=torch.float32)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-2)
    rate = get_scheduler("constant", optimizer)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, text = torch.randn(LATENT), torch.randn(TEXT)
    unet.train()
    ends = [time.perf_counter()]
    for _ in range(steps):
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (1,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return [after - before for before, after in pairwise(ends)]


def lading_loop(folder: Path, steps: int, limit: int | None) -> list[float]:
    """Steps as `lading train lora` makes them, resident or under a limit; returns the seconds of each."""
    import lading
    from lading.latents import LatentShape
    from lading.training.checkpoints import Checkpoints
    from lading.training.conditions import Conditions
    from lading.training.denoising import Denoiser
    from lading.training.loop import Run, Sample, begin, train
    from lading.training.objectives import make_objective
    from lading.training.rehearsal import DenoiserRules
    from lading.training.room import bytes_beside, keep_within
    from lading.training.settings import Settings
    from lading.training.watching import Progress, Watcher
    from lading.training.world import ALONE

    class Example:
        """One example, for ever."""

        def __init__(self, shape: LatentShape) -> None:
            self._sample = Sample(torch.randn(LATENT), Conditions({"encoder_hidden_states": torch.randn(TEXT)}), shape)

        @property
        def buckets(self) -> tuple[tuple[int, ...], ...]:
            return (LATENT,)

        def draw(self, index: int, generator: torch.Generator) -> Sample:
            return self._sample

    class Clock(Watcher):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def step(self, progress: Progress) -> None:
            self.seconds.append(progress.seconds)

    settings = Settings(steps=steps, learning_rate=RATE, rank=RANK, weight_decay=1e-2)
    unlimited = None if limit is None else sys.maxsize
    unet = lading.load_model(UNet2DConditionModel, folder, torch_dtype="float32", memory_limit=unlimited)
    lading.freeze(unet)
    parameters = lading.add_lora(unet, RANK, target_modules=TARGETS)
    unet.train()
    rules = DenoiserRules(
        "sample", "timestep", "number", False, False, frozenset({("encoder_hidden_states",)}), (1.0,) * 4, (0.0,) * 4
    )
    shape = lading.latent_format("stable-diffusion-v1-5/stable-diffusion-v1-5").shape(1, 512, 512)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    cpu, clock = torch.device("cpu"), Clock()
    denoiser = Denoiser(unet, rules, 1000, torch.float32, cpu)
    run = Run(settings, denoiser, Example(shape), make_objective(scheduler, settings), ALONE, clock, cpu)
    if limit is not None:
        keep_within(lading.manager_of(unet), limit, bytes_beside(parameters.values(), settings), run)
    with tempfile.TemporaryDirectory() as name:
        train(run, begin(parameters, settings, torch.float32, "cpu"), Checkpoints(Path(name), 1, settings, {}))
    return clock.seconds


WAYS: dict[str, Callable[[Path, int, int | None], list[float]]] = {"diffusers": diffusers_loop, "lading": lading_loop}


def main(arguments: Sequence[str]) -> None:
    """Run one way and print its figures: seconds of the first step and of one after that, and the peak in bytes."""
    way, folder, steps, *limit = arguments
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = figure_of("/proc/self/status", "VmRSS")
    seconds = WAYS[way](Path(folder), int(steps), int(limit[0]) if limit else None)
    peak = (figure_of("/proc/self/status", "VmHWM") - before) * 1024
    print(json.dumps({"first": seconds[0], "step": median(seconds[1:]), "peak": float(peak)}))


if __name__ == "__main__":
    main(sys.argv[1:])
