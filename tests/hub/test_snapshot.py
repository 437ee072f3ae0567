"""Models by their hub id, from a real server on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lading import shipped_model
from tests.hub.server import Hub, serve


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one model: the shipped one, beside a variant and weights that nobody needs."""
    folder = Path(shutil.copytree(shipped_model(), tmp_path / "hub" / "org" / "name"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    weights.with_name("diffusion_pytorch_model.bin").write_bytes(b"not wanted")
    (folder / "all-in-one.ckpt").write_bytes(b"not wanted")
    with serve(tmp_path / "hub") as server:
        yield server


def run(hub: Hub, tmp_path: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose hub and cache are the test's own."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", f"import lading\n{program}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings, **environment},
        cwd=tmp_path,
    )


def test_a_component_is_fetched_alone_and_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    program = "print(type(lading.load_component('org/name', 'vae')).__name__)"
    first = run(hub, tmp_path, program)
    assert first.stdout.split() == ["AutoencoderKL"], first.stderr
    assert hub.fetched() == {"model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    hub.log.clear()
    again = run(hub, tmp_path, program, HF_HUB_OFFLINE="1")
    assert again.stdout.split() == ["AutoencoderKL"], again.stderr
    assert hub.log == []


def test_a_pipeline_is_fetched_in_one_format_and_the_variant_asked_for(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "lading.load_pipeline('org/name', variant='fp16', revision='main')")
    assert done.returncode == 0, done.stderr
    weights = {name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".ckpt"))}
    assert weights == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("lading.load_component('org/absent', 'vae')", "no such model"),
        ("lading.load_component('org/name', 'vae', revision='nowhere')", "no such revision"),
    ],
)
def test_what_the_hub_lacks_is_a_download_error(hub: Hub, tmp_path: Path, call: str, reason: str) -> None:
    failed = run(hub, tmp_path, call)
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("lading.errors.DownloadError: ")
    assert reason in last


def test_a_hub_that_cannot_be_reached_is_a_download_error(hub: Hub, tmp_path: Path) -> None:
    failed = run(hub, tmp_path, "lading.load_component('org/name', 'vae')", HF_ENDPOINT="http://127.0.0.1:9")
    assert failed.stderr.strip().splitlines()[-1].startswith("lading.errors.DownloadError: org/name: the hub cannot")


def test_model_config_fetches_its_pattern_into_its_folder(hub: Hub, tmp_path: Path) -> None:
    program = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="vae/*.safetensors", local_model_path="base")
config.download_if_necessary()
print(*config.path)
"""
    done = run(hub, tmp_path, program)
    names = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    assert done.stdout.split() == [f"base/org/name/vae/{name}" for name in names], done.stderr
