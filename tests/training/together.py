"""What each of several processes of torchrun runs, beside the command: `PICTURES MODEL OUT CACHE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch.distributed.device_mesh import init_device_mesh

from lading.training import Settings, Watcher, launched, train_model
from lading.training.replicas import Shards
from lading.training.watching import Progress

STEPS: dict[str, Any] = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1}
LORA = Settings(rank=2, flip=True, **STEPS)
FULL = Settings(method="full", clip=0, ema=0.9, validation_prompts=("red",), validation_steps=1, **STEPS)


class StoppedError(Exception):
    """What ends a run between two steps."""


class StopsInTwo(Watcher):
    def step(self, progress: Progress) -> None:
        if progress.step == 2:
            raise StoppedError


def main(pictures: str, model: str, out: Path, cache: str) -> None:
    """Train adapters on a streamed model that each process has, and a whole denoiser held together, with a stop."""
    with launched() as world:
        limited = Settings(**{**LORA.to_json(), "memory_limit": "12MB"})
        train_model("shapes", pictures, out / "streamed", limited, cache=cache, world=world)
        together = Shards(world.rank, world.size, world.device, init_device_mesh("cpu", (world.size,)))
        try:
            train_model(model, pictures, out / "full", FULL, cache=cache, watcher=StopsInTwo(), world=together)
        except StoppedError:
            train_model(model, pictures, out / "full", FULL, resume=True, cache=cache, world=together)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
