"""The promise: under a real limit nothing is killed, and no limit is overshot."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_sparse
from tests.memory.contained import CASES, SLACK_BYTES, SLACK_SHARE

STEPS = 5
MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def groups() -> Iterator[Any]:
    """Makes memory control groups, of either version."""
    made: list[Path] = []
    version_1 = (MEMORY / "memory.limit_in_bytes").exists()

    def make() -> Path:
        group = (MEMORY if version_1 else Path("/sys/fs/cgroup")) / f"lading-{uuid.uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            pytest.skip("control groups cannot be made here")
        made.append(group)
        return group

    yield make
    for group in made:
        group.rmdir()


@pytest.mark.parametrize("name", CASES)
def test_a_limit_is_kept_from_the_smallest_that_works_to_everything(name: str, tmp_path: Path, groups: Any) -> None:
    with torch.device("meta"):
        shapes = {name: list(parameter.shape) for name, parameter in CASES[name].build().named_parameters()}
    file = write_sparse(tmp_path / "model.safetensors", shapes)
    command = [sys.executable, "-m", "tests.memory.contained", name, str(file), str(STEPS), str(groups())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    runs = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{name} after {runs}: {result.returncode} {result.stderr[-2000:]}"
    assert len(runs) == STEPS
    for found in runs:
        assert found["planned"] <= found["limit"]
        assert found["grown"] <= found["limit"] + max(SLACK_BYTES, int(SLACK_SHARE * found["limit"]))
    assert runs[0]["streamed"] > 0
    assert runs[-1]["streamed"] == 0
