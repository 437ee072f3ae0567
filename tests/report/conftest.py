"""A recorded run, real and short, that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import lading
from lading.report import Run

PROMPT = "a red circle on a white background"
LIMIT = 6_000_000
STEPS = 4


@dataclass(frozen=True)
class Recorded:
    """What was recorded, what was drawn, and with what; the pipeline's statistics are those of this run."""

    run: Run
    picture: Any
    pipeline: Any


def draw(pipeline: Any, **arguments: Any) -> Any:
    """Draw a picture from the same noise as ever."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, **arguments}
    return pipeline(PROMPT, generator=torch.Generator().manual_seed(7), **given).images[0]


@pytest.fixture(scope="session")
def limited() -> Iterator[Recorded]:
    """The shipped model, loaded and called within a limit while it is recorded."""
    with lading.record(prompt=PROMPT, seed=7) as recording:
        pipeline = lading.load_pipeline("shapes", memory_limit=LIMIT)
        recording.watch(pipeline)
        picture = draw(pipeline)
    yield Recorded(recording.run, picture, pipeline)
