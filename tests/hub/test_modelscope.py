"""What is ModelScope's own: its client, its sites, its settings. What both hubs share is in the other files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading import DownloadError, ModelConfig, open_checkpoint
from lading.hub.modelscope import ModelScope
from lading.hub.remote import RemoteModel
from tests.hub.conftest import NO_SOCKET, Run, last_line
from tests.hub.server import Fault, Hub, serve

UNET = "unet/diffusion_pytorch_model.safetensors"
FETCH = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="unet/*", download_source="modelscope")
config.download_if_necessary()
print(*config.path)
"""


@pytest.fixture
def two_sites(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Hub]]:
    """The hub as modelscope.cn, and a second one, as modelscope.ai, that alone has org/abroad."""
    folder = tmp_path / "abroad" / "org" / "abroad"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((hub.root / "org/name" / UNET).read_bytes())
    with serve(tmp_path / "abroad") as abroad:
        for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_PREFER_AI_SITE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("modelscope_hub.constants.DEFAULT_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("modelscope_hub.constants.DEFAULT_INTL_ENDPOINT", abroad.endpoint)
        yield hub, abroad


def test_without_its_client_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    config = ModelConfig(model_id="org/name", download_source="modelscope", local_model_path=str(tmp_path))
    with pytest.raises(DownloadError, match=r"pip install 'lading\[modelscope\]'"):
        config.download_if_necessary()


def test_files_come_from_it_and_then_need_no_hub(hub: Hub, run: Run, tmp_path: Path) -> None:
    done = run(FETCH)
    assert done.stdout.split() == [f"models/org/name/unet/{Path(name).name}" for name in ("config.json", UNET)], (
        done.stderr
    )
    assert (tmp_path / "models/org/name" / UNET).read_bytes() == (hub.root / "org/name" / UNET).read_bytes()
    assert not any(request.path.startswith("/api/models/") for request in hub.log), "the other hub's protocol"
    hub.log.clear()
    assert run(NO_SOCKET + FETCH, LADING_SKIP_DOWNLOAD="true").stdout == done.stdout
    assert hub.log == []


def test_a_domain_names_its_site_too(hub: Hub, run: Run) -> None:
    done = run(FETCH, MODELSCOPE_ENDPOINT="", MODELSCOPE_DOMAIN=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert UNET in hub.fetched()


def test_the_environment_makes_it_the_hub_of_every_command_and_of_pipelines(hub: Hub, run: Run, tmp_path: Path) -> None:
    program = """
from lading.cli import main
from lading.hub import model_folder
import sys
from collections.abc import Iterator
assert main(["fetch", "org/name", "vae/config.json"]) == 0
assert main(["inspect", "org/name/unet", "--json"]) == 0
print(model_folder("org/name"))
print(model_folder("org/name", ["scheduler"]))
assert "torch" not in sys.modules
"""
    place = str(tmp_path / "base")
    done = run(program, DIFFSYNTH_DOWNLOAD_SOURCE="modelscope", LADING_MODEL_BASE_PATH=place)
    assert (done.returncode, done.stderr) == (0, "")
    fetched, inspected, *folders = done.stdout.splitlines()
    assert fetched.startswith(f"{place}/org/name ")
    assert json.loads(inspected)["hash"] == open_checkpoint(hub.root / "org/name/unet").hash()
    assert folders == [f"{place}/org/name"] * 2
    held = {file.name for file in (tmp_path / "base/org/name").rglob("*.*") if ".cache" not in file.parts}
    assert {"model_index.json", "merges.txt"} <= held
    assert not any(name.endswith((".bin", ".ckpt", ".fp16.safetensors")) for name in held)
    offline = "from lading.hub import model_folder; print(model_folder('org/name'))"
    known = {"LADING_DOWNLOAD_SOURCE": "modelscope", "LADING_SKIP_DOWNLOAD": "1"}
    assert run(NO_SOCKET + offline, LADING_MODEL_BASE_PATH=place, **known).stdout.split() == folders[:1]
    assert "other is not there, and remote requests are turned off" in last_line(
        run(NO_SOCKET + offline, LADING_MODEL_BASE_PATH=f"{place}/other", **known)
    ).replace("/org/name", "")


def test_headers_come_by_ranges(hub: Hub, modelscope: ModelScope) -> None:
    remote = RemoteModel(modelscope, modelscope.repository("org/name")).checkpoints("unet")["unet"]
    assert remote.hash() == open_checkpoint(hub.root / "org/name/unet").hash()
    assert hub.storage is not None
    assert sum(hub.storage.sent.values()) <= 1 << 17


def test_a_model_that_only_the_other_site_has_comes_from_there_without_the_token_of_the_first(
    two_sites: tuple[Hub, Hub], tmp_path: Path
) -> None:
    first, second = two_sites
    source = ModelScope("ms-secret")
    repository = source.repository("org/abroad")
    (file,) = repository.files
    assert source.read(repository, file, 0, 8) == (first.root / "org/name" / UNET).read_bytes()[:8]
    assert all(request.headers.get("Authorization") == "Bearer ms-secret" for request in first.log)
    assert second.log
    assert all("ms-secret" not in str(request) for request in second.log)


def test_the_other_site_may_be_preferred_and_one_that_is_named_is_the_only_one(
    two_sites: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_sites
    with pytest.raises(DownloadError, match="has no such model"):
        ModelScope(False, first.endpoint).repository("org/abroad")
    assert second.log == []
    monkeypatch.setenv("MODELSCOPE_PREFER_AI_SITE", "true")
    first.log.clear()
    ModelScope(False).repository("org/abroad")
    assert first.log == []
    assert ModelScope(False).repository("org/name").files
    with pytest.raises(DownloadError, match=f"org/nobody: neither {second.endpoint} nor {first.endpoint} has such a"):
        ModelScope(False).repository("org/nobody")


def test_false_is_no_token_and_none_that_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    for token, sent in ((False, False), (None, True)):
        hub.log.clear()
        ModelScope(token, hub.endpoint).repository("org/name")
        assert ["ms-secret" in str(request) for request in hub.log] == [sent]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 401}, r"does not accept the token \(401\): log in \(`modelscope login`\)"),
        ({"status": 403}, r"forbids it \(403\): ask there for access"),
        ({"status": 200, "content": b"<html>welcome</html>"}, "does not answer as a hub does .*MODELSCOPE_ENDPOINT"),
        ({"status": 200, "content": b"[1, 2]"}, "does not answer as a hub does .*check MODELSCOPE_ENDPOINT"),
        ({"status": 418}, "does not answer as a hub does .*check MODELSCOPE_ENDPOINT"),
    ],
)
def test_every_refusal_says_what_to_do(hub: Hub, modelscope: ModelScope, fault: dict[str, object], reason: str) -> None:
    hub.faults = [Fault("/repo/files", times=99, **fault)]  # type: ignore[arg-type]  # the fields of each case are right
    with pytest.raises(DownloadError, match=reason):
        modelscope.repository("org/name")


def test_a_name_that_is_not_there_is_answered_with_close_ones(modelscope: ModelScope) -> None:
    with pytest.raises(DownloadError, match=r"org/nmae: .* has no such model.*; there is org/name$"):
        modelscope.repository("org/nmae")
    with pytest.raises(DownloadError, match=r"org/name at revision v2: .* no such model or revision"):
        modelscope.repository("org/name", "v2")
