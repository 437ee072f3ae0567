"""`lading fetch`: as a stranger runs it, killed in the middle, and where the network may not be used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import run_in_terminal
from tests.hub.conftest import Run, last_line
from tests.hub.server import Hub

SHARDS = [f"transformer/model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
SHARD_BYTES = 3 << 20
NO_SOCKET = """
import os, sys
def refuse(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"{event} {details}".encode())
        os._exit(99)
sys.addaudithook(refuse)
"""


@pytest.fixture
def sharded(hub: Hub) -> Hub:
    """The hub with a model of four shards, each of its own content."""
    for number, name in enumerate(SHARDS):
        file = hub.root / "org/sharded" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * SHARD_BYTES)
    return hub


def test_killed_in_the_middle_it_goes_on_where_it_stopped(
    sharded: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    storage = sharded.storage
    assert storage is not None
    command = [sys.executable, "-m", "lading", "fetch", "org/sharded", "--to", str(tmp_path / "out")]
    storage.pause = 0.01
    process = subprocess.Popen(command, env=environment)
    while min((storage.sent.get(Path(name).name, 0) for name in SHARDS), default=0) < SHARD_BYTES // 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    storage.pause = 0.0
    assert not any((tmp_path / "out" / name).exists() for name in SHARDS), "nothing looks whole"
    there = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.partial"))
    assert there > 0
    time.sleep(0.2)  # the server notices that its clients are gone
    storage.sent.clear()
    storage.log.clear()
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (sorted(result["files"]), result["nbytes"]) == (SHARDS, 4 * SHARD_BYTES)
    for number, name in enumerate(SHARDS):
        assert (tmp_path / "out" / name).read_bytes() == bytes([number]) * SHARD_BYTES
    assert sum(storage.sent.values()) == 4 * SHARD_BYTES - there, "what had arrived was not sent again"
    assert list((tmp_path / "out").rglob("*.partial")) == []


def test_what_is_fetched_by_id_is_what_a_pipeline_then_uses(hub: Hub, run: Run) -> None:
    program = "from lading.cli import main; raise SystemExit(main(['fetch', 'org/name']))"
    first = run(program)
    assert (first.returncode, first.stderr) == (0, ""), "in a pipe there is no bar"
    assert first.stdout.split()[1:3] == [str(len(hub.fetched())), "files,"]
    assert {name for name in hub.fetched() if "/" not in name} == {"model_index.json"}
    hub.log.clear()
    find = "from lading.hub import model_folder; print(sorted(f.name for f in model_folder('org/name').iterdir()))"
    again = run(NO_SOCKET + find, LADING_SKIP_DOWNLOAD="true")
    assert "model_index.json" in again.stdout, again.stderr
    assert hub.log == []


def test_patterns_choose_and_an_unknown_one_is_answered_with_close_names(hub: Hub, run: Run, tmp_path: Path) -> None:
    fetch = "from lading.cli import main; raise SystemExit(main(['fetch', 'org/name', {!r}, '--to', 'out']))"
    assert run(fetch.format("vae/*.json")).returncode == 0
    assert [file.name for file in (tmp_path / "out" / "vae").iterdir()] == ["config.json"]
    failed = run(fetch.format("vae/confg.json"))
    assert (failed.returncode, last_line(failed)) == (
        1,
        "lading: org/name: no file on the hub matches 'vae/confg.json': close to it are vae/config.json, "
        "unet/config.json, text_encoder/config.json: correct the pattern",
    )


def test_a_terminal_shows_each_file_and_all_of_them(
    sharded: Hub, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sharded.storage is not None
    sharded.storage.pause = 0.005
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "lading", "fetch", "org/sharded", "--to", str(tmp_path / "out")]
    status, shown = run_in_terminal(command)
    assert status == 0, shown.decode()
    assert b"4 files" in shown
    assert b"transformer/model-00001" in shown
    assert b"MB/s" in shown


@pytest.mark.parametrize("setting", ["LADING_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD", "HF_HUB_OFFLINE"])
def test_told_so_no_socket_is_opened(hub: Hub, run: Run, tmp_path: Path, setting: str) -> None:
    file = tmp_path / "models/org/name/vae/a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    program = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="vae/*")
config.download_if_necessary()
print(config.path)
given = lading.ModelConfig(path="x")
given.download_if_necessary()
try:
    lading.load_component("org/name", "vae")
except lading.DownloadError as error:
    print(error)
"""
    done = run(NO_SOCKET + program, **{setting: "true"})
    assert done.returncode == 0, done.stderr
    path, error = done.stdout.splitlines()
    assert path == "models/org/name/vae/a.safetensors"
    assert error.startswith("org/name: not in the local cache")
    assert hub.log == []


def test_files_that_are_named_and_there_need_no_hub(hub: Hub, run: Run, tmp_path: Path) -> None:
    fetch = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern=["vae/config.json", "unet/config.json"])
config.download_if_necessary()
print(*config.path)
"""
    places = ["models/org/name/unet/config.json", "models/org/name/vae/config.json"]
    assert run(fetch).stdout.split() == places
    (tmp_path / places[0]).unlink()
    hub.log.clear()
    assert run(fetch).returncode == 0
    assert hub.fetched() == {"unet/config.json"}, "what is missing is asked for though some is there"
    assert run(NO_SOCKET + fetch).returncode == 0
