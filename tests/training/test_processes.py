"""Several processes train as one does with their batches together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lading.training import Settings, train_model


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def together(data: Path, out: Path, *options: str) -> None:
    """Run `lading train lora` in two processes of torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["-m", "lading", "train", "lora", "shapes", "--data", str(data), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(300)
def test_two_processes_under_a_limit_learn_what_one_learns_from_the_same_batches_without(
    pictures: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 2, "rank": 2, "learning_rate": 1e-3, "flip": True}
    cache = tmp_path / "cache"
    alone = train_model("shapes", pictures, tmp_path / "one", Settings(accumulate=2, **options), cache=cache)
    given = ["--steps", "2", "--batch-size", "2", "--rank", "2", "--learning-rate", "1e-3", "--flip"]
    given += ["--cache", str(cache), "--memory-limit", "12MB"]
    together(pictures, tmp_path / "two", *given)
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
        assert two["examples"] == one["examples"] == 4
    expected, found = load_file(alone.files[0]), load_file(tmp_path / "two" / alone.files[0].name)
    apart = torch.cat([(expected[name] - found[name]).flatten() for name in expected])
    assert apart.abs().mean() < 1e-6
