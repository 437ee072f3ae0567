"""ModelScope's own client, where it is installed, against a hub that speaks its protocol."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from lading import DownloadError, ModelConfig
from tests.hub.conftest import Run, last_line
from tests.hub.server import Fault, Hub

installed = pytest.mark.skipif(importlib.util.find_spec("modelscope_hub") is None, reason="modelscope is not installed")
UNET = "unet/diffusion_pytorch_model.safetensors"
FETCH = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="unet/*", download_source="modelscope")
config.download_if_necessary()
print(*config.path)
"""


def test_without_its_client_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    config = ModelConfig(model_id="org/name", download_source="modelscope", local_model_path=str(tmp_path))
    with pytest.raises(DownloadError, match=r"pip install 'lading\[modelscope\]'"):
        config.download_if_necessary()


@installed
def test_files_come_through_its_client_and_then_need_no_hub(hub: Hub, run: Run, tmp_path: Path) -> None:
    done = run(FETCH)
    assert done.stdout.split() == [f"models/org/name/unet/{Path(name).name}" for name in ("config.json", UNET)], (
        done.stderr
    )
    assert (tmp_path / "models/org/name" / UNET).read_bytes() == (hub.root / "org/name" / UNET).read_bytes()
    assert not any(request.path.startswith("/api/models/") for request in hub.log), "the other hub's protocol"
    hub.log.clear()
    assert run(FETCH, LADING_SKIP_DOWNLOAD="true").stdout == done.stdout
    assert hub.log == []


@installed
def test_the_environment_chooses_the_hub_and_fetch_takes_its_name(hub: Hub, run: Run, tmp_path: Path) -> None:
    program = "from lading.cli import main; raise SystemExit(main(['fetch', 'org/name', 'vae/config.json']))"
    done = run(program, DIFFSYNTH_DOWNLOAD_SOURCE="modelscope", LADING_MODEL_BASE_PATH=str(tmp_path / "base"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "base/org/name/vae/config.json").is_file()


@installed
def test_a_broken_connection_is_resumed_through_its_client_too(hub: Hub, run: Run, tmp_path: Path) -> None:
    assert hub.storage is not None
    hub.storage.faults = [Fault(UNET, cut=4_000_000)]
    assert run(FETCH).returncode == 0
    assert (tmp_path / "models/org/name" / UNET).read_bytes() == (hub.root / "org/name" / UNET).read_bytes()
    assert "Range" in hub.storage.log[-1].headers


@installed
def test_what_it_lacks_is_a_download_error(run: Run) -> None:
    absent = run(FETCH.replace("org/name", "org/absent"))
    assert last_line(absent).startswith("lading.errors.DownloadError: org/absent: "), absent.stderr
    assert "no such model or revision" in last_line(absent)


@installed
def test_wrong_bytes_through_its_client_are_named_and_not_kept(hub: Hub, run: Run, tmp_path: Path) -> None:
    assert hub.storage is not None
    hub.storage.faults = [Fault(UNET, times=99, corrupt=True)]
    failed = run(FETCH)
    assert f"org/name: {UNET}: what arrived is not what the hub lists" in last_line(failed), failed.stderr
    assert not (tmp_path / "models/org/name" / UNET).exists()
