"""Hubs with a model, and programs that know no other hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from safetensors.torch import load_file, save_file

from lading import shipped_model
from lading.hub.huggingface import HuggingFace
from lading.hub.modelscope import ModelScope
from tests.hub.server import Hub, serve

NO_SOCKET = """
import os, sys
def refuse(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        os.write(2, f"{event} {details}".encode())
        os._exit(99)
sys.addaudithook(refuse)
"""
"""What a program begins with that may not use the network: trying to ends it, whoever tries."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


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


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a program whose hub and cache are the test's own."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "MODELSCOPE_ENDPOINT": hub.endpoint,
        "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
        "MODELSCOPE_HOME": str(tmp_path / "modelscope-home"),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LADING_"))}
    return {**inherited, **settings}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a program to its end."""

    def run_program(program: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"import lading\n{program}"],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, **more},
            cwd=tmp_path,
        )

    return run_program


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a program said on stderr: its exception."""
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def source(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFace]:
    """This process's way to the test's hub, with an empty cache and little patience."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr("lading.hub.stream._FIRST_WAIT_SECONDS", 0.01)
    yield HuggingFace(token=False, endpoint=hub.endpoint)
    close_session()


@pytest.fixture
def modelscope(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelScope:
    """This process's way to the same hub, where it speaks ModelScope's protocol."""
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    monkeypatch.setattr("lading.hub.stream._FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0.01)
    return ModelScope(token=False, endpoint=hub.endpoint)
