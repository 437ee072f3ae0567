"""Weights are on their way before the libraries that need them are imported."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - so that there is nothing to read ahead of
from diffusers import UNet2DConditionModel  # noqa: F401

from lading.checkpoint.mapping import resident_share
from lading.loading.ahead import read_ahead
from tests.checkpoint.tensor_files import drop_from_cache
from tests.conftest import write_sparse

AHEAD = """
import sys, pathlib
from lading.loading.ahead import read_ahead
thread = read_ahead(pathlib.Path(sys.argv[1]))
thread.join()
print("torch" in sys.modules)
"""


def share(file: Path) -> float:
    with file.open("rb") as stream:
        return resident_share(stream.fileno(), file.stat().st_size)


def test_a_pipelines_weights_are_fetched_without_torch(tmp_path: Path) -> None:
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    other = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights.parent.mkdir()
    for file in (weights, other):
        file.write_bytes(bytes(range(256)) * (64 << 12))
        drop_from_cache(file)
    run = subprocess.run([sys.executable, "-c", AHEAD, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    deadline = time.monotonic() + 10
    while share(weights) < 0.95 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert share(weights) > 0.95
    assert share(other) < 0.05


def test_nothing_is_fetched_when_the_libraries_are_there(tmp_path: Path) -> None:
    assert read_ahead(tmp_path) is None


def test_files_that_would_crowd_the_memory_are_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    write_sparse(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {"a": [10**12]})
    run = subprocess.run([sys.executable, "-c", AHEAD, tmp_path], capture_output=True, text=True)
    assert "NoneType" in run.stderr
