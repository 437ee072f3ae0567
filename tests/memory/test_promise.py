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
from tests.memory.contained import CASES, SLACK_BYTES, SLACK_SHARE

STEPS = 5


@pytest.mark.parametrize("name", CASES)
def test_a_limit_is_kept_from_the_smallest_that_works_to_everything(
    name: str, tmp_path: Path, control_groups: Callable[[int | None], Path]
) -> None:
    with torch.device("meta"):
        shapes = {name: list(parameter.shape) for name, parameter in CASES[name].build().named_parameters()}
    file = write_sparse(tmp_path / "model.safetensors", shapes)
    command = [sys.executable, "-m", "tests.memory.contained", name, str(file), str(STEPS), str(control_groups(None))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    runs = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{name} after {runs}: {result.returncode} {result.stderr[-2000:]}"
    assert len(runs) == STEPS
    for found in runs:
        assert found["planned"] <= found["limit"]
        assert found["grown"] <= found["limit"] + max(SLACK_BYTES, int(SLACK_SHARE * found["limit"]))
    assert runs[0]["streamed"] > 0
    assert runs[-1]["streamed"] == 0
