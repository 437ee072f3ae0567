"""The promise: under a real limit nothing is killed, and no limit is overshot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import write_sparse
from tests.memory.contained import CASES, SLACK_BYTES, SLACK_SHARE, STEPS

LARGE = "FLUX of 5 GB"


@pytest.mark.parametrize("name", [name for name in CASES if name != LARGE])
def test_a_limit_is_kept_from_the_smallest_that_works_to_everything(
    name: str, tmp_path: Path, control_groups: Callable[[int | None], Path]
) -> None:
    runs = compute(name, tmp_path / "model.safetensors", control_groups(None))
    assert len(runs) == STEPS
    assert runs[0]["streamed"] > 0
    assert runs[-1]["streamed"] == 0


def test_a_denoiser_of_5_gb_computes_in_1500_mb(tmp_path: Path, control_groups: Callable[[int | None], Path]) -> None:
    file = tmp_path / "model.safetensors"
    (found,) = compute(LARGE, file, control_groups(None), 1_500_000_000)
    assert file.stat().st_size > 5e9
    assert 3.5e9 < found["streamed"] < 4.2e9


def compute(name: str, file: Path, group: Path, *limits: int) -> list[dict[str, int]]:
    """Compute a network in a control group; see `contained`. Its weights are zero."""
    with torch.device("meta"):
        shapes = {name: list(parameter.shape) for name, parameter in CASES[name].build().named_parameters()}
    write_sparse(file, shapes)
    command = [sys.executable, "-m", "tests.memory.contained", name, str(file), str(group), *map(str, limits)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    runs = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{name} after {runs}: {result.returncode} {result.stderr[-2000:]}"
    for found in runs:
        assert found["planned"] <= found["limit"]
        assert found["grown"] <= found["limit"] + max(SLACK_BYTES, int(SLACK_SHARE * found["limit"]))
    return runs
