"""No work is lost: whatever happens to a run, it goes on to the weights that it would have had."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lading import CheckpointError, LadingError
from lading.training import Settings, Watcher, train_model
from lading.training.checkpoints import Checkpoints
from lading.training.loop import begin
from lading.training.watching import Progress
from tests.training.tiny import write_data

ALL: dict[str, Any] = {
    "batch_size": 2,
    "accumulate": 2,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup": 2,
    "ema": 0.9,
    "lora_dropout": 0.1,
    "caption_dropout": 0.3,
    "flip": True,
    "rank": 2,
}
"""Everything that has a state, or draws."""


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "pytorch_lora_weights.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def steps_logged(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_at_random_steps_ends_with_the_same_weights_bit_for_bit(
    pictures: Path, tmp_path: Path
) -> None:
    settings = Settings(steps=14, checkpoint_every=2, **ALL)
    cache = tmp_path / "cache"
    train_model("shapes", pictures, tmp_path / "whole", settings, cache=cache)
    options = ["--steps", "14", "--checkpoint-every", "2", "--batch-size", "2", "--accumulate", "2", "--rank", "2"]
    options += ["--learning-rate", "1e-2", "--schedule", "cosine", "--warmup", "2", "--ema", "0.9", "--flip"]
    options += ["--lora-dropout", "0.1", "--caption-dropout", "0.3", "--cache", str(cache)]
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lading", "train", "lora", "shapes", "--data", str(pictures), "--out", str(out)]
    chance = random.Random(5)
    for attempt in range(3):
        resume = ["--resume"] if any((out / "checkpoints").glob("step-*")) else []
        process = subprocess.Popen(
            [*command, *options, *resume], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        if attempt < 2:
            _kill_after(process, out / "log.jsonl", chance.randrange(2, 6) * (attempt + 1), chance.random() / 20)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()
    assert same(weights(out), weights(tmp_path / "whole"))
    assert steps_logged(out) == list(range(1, 15))


def _kill_after(process: subprocess.Popen[bytes], log: Path, lines: int, seconds: float) -> None:
    """Kill a process, as `kill -9` does, a moment after it has logged a step."""
    while process.poll() is None:
        if log.is_file() and len(log.read_text().splitlines()) >= lines:
            time.sleep(seconds)
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


class KilledError(Exception):
    pass


class StopsAt(Watcher):
    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, progress: Progress) -> None:
        if progress.step == self._step:
            raise KilledError


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = []
    for number, seed in enumerate((0, 0, 1)):
        settings = Settings(steps=2, seed=seed, **ALL)
        train_model("shapes", pictures, tmp_path / str(number), settings, cache=cache)
        found.append(weights(tmp_path / str(number)))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(
    ("method", "more", "file"),
    [
        ("full", {}, "pipeline/unet/diffusion_pytorch_model.safetensors"),
        ("textual-inversion", {"token": "<thing>", "initial_word": "red", "vectors": 2}, "learned_embeds.safetensors"),
    ],
)
def test_the_whole_denoiser_and_a_word_go_on_as_adapters_do(
    method: Any, more: dict[str, Any], file: str, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", word="<thing>")
    settings = Settings(method=method, batch_size=2, checkpoint_every=1, steps=3, learning_rate=1e-3, **more)
    train_model("shapes", data, tmp_path / "one", settings)
    with pytest.raises(KilledError):
        train_model("shapes", data, tmp_path / "two", settings, watcher=StopsAt(2))
    train_model("shapes", data, tmp_path / "two", settings, resume=True)
    assert same(load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_step(pictures: Path, tmp_path: Path) -> None:
    settings = Settings(steps=50, batch_size=2, learning_rate=1e30, clip=0, checkpoint_every=1000)
    with pytest.raises(LadingError, match=r"step \d+: the (loss|norm of the gradients) is (nan|inf): the weights of"):
        train_model("shapes", pictures, tmp_path, settings)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    last = steps_logged(tmp_path)[-1:] or [0]
    assert kept.name == f"step-{last[0]:06d}"
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "trained.safetensors").values())


def test_a_full_disk_is_said_and_leaves_the_checkpoints_that_were_there(pictures: Path, tmp_path: Path) -> None:
    settings = Settings(steps=4, checkpoint_every=2, **ALL)
    train_model("shapes", pictures, tmp_path / "whole", settings, cache=tmp_path / "cache")
    out = tmp_path / "full"

    class Fills(Watcher):
        """Leaves no room for files of more than some kilobytes after the third step, as a full disk would."""

        def step(self, progress: Progress) -> None:
            if progress.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(
            LadingError, match=r"step-000004: the checkpoint cannot be written .*the last one is of step 2"
        ):
            train_model("shapes", pictures, out, settings, cache=tmp_path / "cache", watcher=Fills())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert [entry.name for entry in (out / "checkpoints").iterdir()] == ["step-000002"]
    train_model("shapes", pictures, out, settings, resume=True, cache=tmp_path / "cache")
    assert same(weights(out), weights(tmp_path / "whole"))


def test_what_would_change_the_run_is_refused_on_resume_and_what_would_not_is_taken(
    pictures: Path, tmp_path: Path
) -> None:
    settings = Settings(steps=2, checkpoint_every=1, batch_size=2)
    train_model("shapes", pictures, tmp_path / "out", settings)
    with pytest.raises(LadingError, match="the settings that the run began with: rank is 4 and was 8: use those"):
        train_model("shapes", pictures, tmp_path / "out", Settings(steps=2, batch_size=2, rank=4), resume=True)
    with pytest.raises(LadingError, match="a run has left checkpoints here: go on with --resume"):
        train_model("shapes", pictures, tmp_path / "out", settings)
    other = Settings(steps=2, checkpoint_every=5, batch_size=2, keep_checkpoints=1)
    assert train_model("shapes", pictures, tmp_path / "out", other, resume=True).steps == 2
    with pytest.raises(LadingError, match="there is no checkpoint to go on from"):
        train_model("shapes", pictures, tmp_path / "fresh", settings, resume=True)


def _state(ema: float | None = None) -> tuple[Settings, Any]:
    torch.manual_seed(0)
    settings = Settings(ema=ema)
    layer = torch.nn.Linear(3, 2)
    return settings, begin(dict(layer.named_parameters()), settings, torch.float32, "cpu")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    settings, state = _state(0.9)
    checkpoints = Checkpoints(tmp_path, 2, settings, {})
    folder = checkpoints.save(state)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json: it cannot be read"):
        checkpoints.restore(state)


def _killed_at(moment: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed at the n-th time it syncs, renames or removes; tell whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which a process that only writes files does without
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    turns = count()

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(turns) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    try:
        act()
    finally:
        os._exit(0)


def test_a_kill_at_any_moment_of_writing_a_checkpoint_leaves_a_whole_one(tmp_path: Path) -> None:
    settings, state = _state(0.9)
    found = []
    for moment in count():
        folder = tmp_path / str(moment)
        checkpoints = Checkpoints(folder, 1, settings, {})
        _come_to(state, 1)
        checkpoints.save(state)
        _come_to(state, 2)
        killed = _killed_at(moment, partial(checkpoints.save, state))
        checkpoints.restore(state)
        found.append(state.step)
        assert all(bool((tensor == state.step).all()) for tensor in state.parameters.values())
        if not killed:
            break
        _come_to(state, 3)
        checkpoints.save(state)
        assert [entry.name for entry in folder.iterdir()] == ["step-000003"]
    assert found == sorted(found) and set(found) == {1, 2} and len(found) > 10


def _come_to(state: Any, step: int) -> None:
    """Bring a state to a step, at which its parameters are all the step's number."""
    state.step = step
    with torch.no_grad():
        for parameter in state.parameters.values():
            parameter.fill_(step)


def test_only_safetensors_and_json_are_in_a_checkpoint_and_old_ones_go(tmp_path: Path) -> None:
    settings, state = _state(0.9)
    checkpoints = Checkpoints(tmp_path, 2, settings, {"model": "a"})
    (tmp_path / ".part-0123-step-000001").mkdir(parents=True)
    for step in (1, 2, 3):
        state.step = step
        checkpoints.save(state)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".json", ".safetensors"}
    with pytest.raises(LadingError, match="its run had another model"):
        Checkpoints(tmp_path, 2, settings, {"model": "b"}).restore(state)


def test_weights_of_another_shape_or_name_do_not_restore(tmp_path: Path) -> None:
    settings, state = _state()
    checkpoints = Checkpoints(tmp_path, 2, settings, {})
    folder = checkpoints.save(state)
    save_file({"strange": torch.zeros(2)}, folder / "trained.safetensors")
    with pytest.raises(LadingError, match="it is of other weights, such as bias"):
        checkpoints.restore(state)
