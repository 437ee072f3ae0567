"""Training under a memory limit: what streams teaches what resident weights teach, and what cannot be is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lading
from lading import MemoryLimitError
from lading.training import Settings, Watcher, train_model
from lading.training.watching import Progress
from tests.training.large import write_sdxl
from tests.training.tiny import write_data

LIMIT = "12MB"
"""Of the shipped model's UNet, of which it keeps a part, and of all else that training takes."""


class Losses(Watcher):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def step(self, progress: Progress) -> None:
        self.seen.append((progress.loss, progress.gradient_norm))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_streamed_base_gives_the_gradients_and_weights_of_a_resident_one(
    checkpointing: bool, pictures: Path, tmp_path: Path
) -> None:
    found: list[tuple[Any, dict[str, torch.Tensor]]] = []
    for limit in (None, LIMIT):
        settings = Settings(
            steps=3, batch_size=2, accumulate=2, rank=2, ema=0.9, learning_rate=1e-2,
            gradient_checkpointing=checkpointing, memory_limit=limit,
        )  # fmt: skip
        losses = Losses()
        out = tmp_path / str(limit)
        outcome = train_model("shapes", pictures, out, settings, cache=tmp_path / "cache", watcher=losses)
        found.append((losses.seen, load_file(outcome.files[0])))
    (resident, expected), (streamed, weights) = found
    assert resident == streamed
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


def test_a_limit_that_is_too_small_says_what_would_do_and_that_does(pictures: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "rank": 2}
    cache = tmp_path / "cache"
    with pytest.raises(MemoryLimitError, match=r"cannot be trained in 8\.00 MB: .*at least") as error:
        train_model("shapes", pictures, tmp_path / "a", Settings(memory_limit="8MB", **options), cache=cache)
    enough = Settings(memory_limit=error.value.minimum, **options)
    assert train_model("shapes", pictures, tmp_path / "b", enough, cache=cache).steps == 1


def test_full_fine_tuning_states_its_minimum_before_a_weight_is_read(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"steps": 1, "batch_size": 1}
    with pytest.raises(MemoryLimitError, match=r"cannot be trained whole in 1\.00 MB: .* or train a LoRA") as error:
        train_model("shapes", pictures, tmp_path / "a", Settings("full", memory_limit="1MB", **options), cache=cache)
    assert not cache.exists(), "no encoder has run"
    unet = lading.load_component("shapes", "unet")
    assert error.value.minimum == 4 * sum(parameter.nbytes for parameter in unet.parameters())
    tight = Settings("full", memory_limit=error.value.minimum + 1000, **options)
    monkeypatch.setattr("lading.training.subjects.load_by_spec", None)
    with pytest.raises(MemoryLimitError, match="cannot be trained whole in") as second:
        train_model("shapes", pictures, tmp_path / "b", tight, cache=cache)
    monkeypatch.undo()
    enough = Settings("full", memory_limit=second.value.minimum, **options)
    assert train_model("shapes", pictures, tmp_path / "c", enough, cache=cache).steps == 1


def test_a_word_is_learnt_under_a_limit_as_without(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", word="<thing>")
    found = []
    for limit in (None, LIMIT):
        settings = Settings("textual-inversion", 2, 2, token="<thing>", learning_rate=1e-2, memory_limit=limit)
        outcome = train_model("shapes", data, tmp_path / str(limit), settings, cache=tmp_path / "cache")
        found.append(load_file(outcome.files[0])["<thing>"])
    assert torch.equal(*found)


def test_a_grid_is_drawn_under_the_limit_and_is_the_one_without(pictures: Path, tmp_path: Path) -> None:
    grids = []
    for limit in (None, LIMIT):
        settings = Settings(
            steps=1, batch_size=1, rank=2, validation_prompts=("red",), validation_steps=2, memory_limit=limit
        )
        train_model("shapes", pictures, tmp_path / str(limit), settings, cache=tmp_path / "cache")
        grids.append((tmp_path / str(limit) / "samples/step-000001.png").read_bytes())
    assert grids[0] == grids[1]


@pytest.mark.timeout(600)
def test_a_base_of_5_gb_is_tuned_in_a_group_of_2500_mb(
    tmp_path: Path, control_groups: Callable[[int | None], Path]
) -> None:
    group = control_groups(2_500_000_000)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say of tiny configs
            assert write_sdxl(tmp_path / "model") > 5e9
        data, out = write_data(tmp_path / "data", count=1), tmp_path / "out"
        command = [sys.executable, "-m", "lading", "train", "lora", str(tmp_path / "model"), "--data", str(data)]
        command += ["--out", str(out), "--steps", "2", "--resolution", "64", "--dtype", "bfloat16", "--rank", "2"]
        command += ["--target", "attn2.to_q", "--target", "attn2.to_v", "--memory-limit", "1.6GB"]
        entered = ["sh", "-c", f'echo $$ > {group / "cgroup.procs"} && exec "$@"', "sh", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [each["step"] for each in steps] == [1, 2] and all(each["gradient_norm"] > 0 for each in steps)
        learned = load_file(out / "pytorch_lora_weights.safetensors")
        assert all(tensor.any() for name, tensor in learned.items() if "lora_B" in name)
    finally:
        shutil.rmtree(tmp_path)
