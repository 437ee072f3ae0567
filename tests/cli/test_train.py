"""`lading train`: the whole way from the command line, in a terminal, in a pipe, and where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lading.cli import main
from lading.training.logs import StepLog
from lading.training.watching import Progress
from tests.conftest import run_in_terminal
from tests.training.tiny import write_data

QUICK = ["--steps", "2", "--batch-size", "2", "--rank", "2"]


def test_a_lora_is_trained_from_the_command_line_with_progress_and_used_by_generate(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    command = [sys.executable, "-m", "lading", "train", "lora", "shapes", "--data", str(data), "--out", str(out)]
    status, shown = run_in_terminal([*command, *QUICK, "--kohya"])
    text = shown.decode()
    assert status == 0, text
    for word in ("captions", "pictures", "training", "2/2", "loss", "rate", "examples/s", "trained", "frozen"):
        assert word in text
    for name in ("pytorch_lora_weights.safetensors", "kohya_lora_weights.safetensors"):
        lora, picture = str(out / name), str(tmp_path / f"{name}.png")
        assert main(["generate", "a red star", "--lora", lora, "--steps", "1", "--out", picture, "--json"]) == 0
    assert (tmp_path / "pytorch_lora_weights.safetensors.png").read_bytes() == Path(picture).read_bytes()


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    command = [sys.executable, "-m", "lading", "train", "lora", "shapes", "--data", str(data), "--json", *QUICK]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed == {"files": [str(tmp_path / "out/pytorch_lora_weights.safetensors")], "steps": 2}


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def] # pytest's
    (tmp_path / "empty").mkdir()
    usual = ["--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    for more, said in (
        (["shapes", *usual], "there is no picture in it"),
        (["shapes", *usual, "--steps", "0"], "steps 0 is too small: use 1 or more"),
        (["shapes", *usual, "--weighting", "cosmap"], "weighting 'cosmap' is none for diffusion"),
        (["shapes", *usual, "--resume"], "there is no checkpoint to go on from"),
        (["shapes", *usual, "--dtype", "int9"], "there is no dtype 'int9'"),
    ):
        if "--resume" in more or "--dtype" in more:
            more = [*more[:2], str(write_data(tmp_path / "data")), *more[3:]]
        assert main(["train", "lora", *more]) == 1
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert main(["train", "lora", "shapes"]) == 2


def test_the_help_of_training_imports_no_torch() -> None:
    program = (
        "import sys; from lading.cli import main; main(['train', 'lora', '--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--memory-limit" in done.stdout


def test_a_log_that_ends_in_half_a_line_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = StepLog(file)
    log.begin(2, 3)
    log.step(Progress(3, 3, 0.5, 1e-4, 1.0, 0.1, 2))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
