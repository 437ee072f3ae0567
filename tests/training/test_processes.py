"""Several processes train as one does with their batches together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from lading.training import train_model
from lading.training.subjects import LORA_FILE
from tests.training.together import FULL, LORA

FULL_FILE = "pipeline/transformer/diffusion_pytorch_model.safetensors"


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def together(*command: str) -> None:
    """Run a module in two processes of torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, "-m", *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@dataclass(frozen=True)
class Twice:
    """What one process learns, and what two learn together."""

    one: Path
    two: Path

    def require_alike(self, file: str) -> None:
        """Weights are equal but for the order in which float32 is summed."""
        expected, found = load_file(self.one / file), load_file(self.two / file)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
        apart = torch.cat([(expected[name] - found[name]).flatten() for name in expected])
        assert apart.abs().mean() < 1e-6
        for one, two in zip(log(self.one), log(self.two), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
            assert two["examples"] == one["examples"] == 4


@pytest.fixture(scope="module")
def runs(tiny_model: Callable[[str], Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and of two at a time with half of the batches each."""
    out = tmp_path_factory.mktemp("runs")
    model, cache = str(tiny_model("SD3")), str(out / "cache")
    for name, trained, settings in (("streamed", "shapes", LORA), ("lora", model, LORA), ("full", model, FULL)):
        train_model(trained, pictures, out / "one" / name, replace(settings, accumulate=2), cache=cache)
    together("tests.training.together", str(pictures), model, str(out / "two"), cache)
    options = ["--steps", "2", "--batch-size", "2", "--rank", "2", "--learning-rate", "1e-3", "--flip", "--sharded"]
    given = ["--data", str(pictures), "--out", str(out / "two" / "lora"), "--cache", cache, *options]
    together("lading", "train", "lora", model, *given)
    return out


@pytest.mark.timeout(900)
def test_two_processes_under_a_limit_learn_what_one_learns_from_the_same_batches_without(runs: Path) -> None:
    Twice(runs / "one/streamed", runs / "two/streamed").require_alike(LORA_FILE)


@pytest.mark.timeout(900)
def test_processes_that_hold_the_denoiser_together_teach_adapters_what_one_does(runs: Path) -> None:
    Twice(runs / "one/lora", runs / "two/lora").require_alike(LORA_FILE)


@pytest.mark.timeout(900)
def test_a_whole_denoiser_that_processes_hold_together_is_trained_stopped_drawn_with_and_saved_whole(
    runs: Path,
) -> None:
    Twice(runs / "one/full", runs / "two/full").require_alike(FULL_FILE)
    drawn = [np.asarray(Image.open(runs / way / "full/samples/step-000002.png")) for way in ("one", "two")]
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = DiffusionPipeline.from_pretrained(runs / "two/full/pipeline", **absent)
    pipeline.load_lora_weights(runs / "two/lora")
    saved = load_file(runs / "two/full" / FULL_FILE)
    assert all(
        torch.equal(saved[name], each) for name, each in pipeline.transformer.state_dict().items() if name in saved
    )
