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
from tests.hub.conftest import NO_SOCKET, Run, last_line
from tests.hub.server import Hub

SHARDS = [f"transformer/model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
SHARD_BYTES = 3 << 20


@pytest.fixture
def sharded(hub: Hub) -> Hub:
    """The hub with a model of four shards, each of its own content."""
    for number, name in enumerate(SHARDS):
        file = hub.root / "org/sharded" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * SHARD_BYTES)
    return hub


@pytest.mark.parametrize(
    ("place", "partial"),
    [
        (["--to", "out"], "*.partial"),
        ([], "*.lading.incomplete"),
        (["--source", "modelscope"], "*.partial"),
    ],
    ids=["into a folder", "into the cache", "from ModelScope"],
)
def test_killed_in_the_middle_of_several_shards_it_goes_on_where_it_stopped(
    sharded: Hub, environment: dict[str, str], tmp_path: Path, place: list[str], partial: str
) -> None:
    storage = sharded.storage
    assert storage is not None
    command = [sys.executable, "-m", "lading", "fetch", "org/sharded", *place]
    storage.pause = 0.01
    storage.hurried = {Path(SHARDS[0]).name}  # so that one is whole when the others are not

    def placed() -> list[bytes]:
        """What looks whole: contents that are neither on their way nor the hub's own."""
        files = [file for file in tmp_path.rglob("*") if sharded.root not in file.parents and not file.match(partial)]
        return [file.read_bytes() for file in files if file.is_file() and file.stat().st_size >= SHARD_BYTES // 8]

    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    while min(storage.sent.get(Path(name).name, 0) for name in SHARDS) < SHARD_BYTES // 4 or not placed():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    storage.pause = 0.0
    assert placed() == [bytes(SHARD_BYTES)]
    there = sum(file.stat().st_size for file in tmp_path.rglob(partial))
    assert 0 < there < 3 * SHARD_BYTES
    time.sleep(0.2)  # the server notices that its clients are gone
    storage.sent.clear()
    storage.log.clear()
    done = subprocess.run(
        [*command, "--json"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert (sorted(result["files"]), result["nbytes"]) == (SHARDS, 4 * SHARD_BYTES)
    for number, name in enumerate(SHARDS):
        assert (tmp_path / result["folder"] / name).read_bytes() == bytes([number]) * SHARD_BYTES
    assert sum(storage.sent.values()) == 3 * SHARD_BYTES - there, "what had arrived was not sent again"
    assert list(tmp_path.rglob(partial)) == []


@pytest.mark.parametrize("place", [["--to", "out"], []], ids=["into a folder", "into the cache"])
def test_two_processes_fetch_a_model_once(
    sharded: Hub, environment: dict[str, str], tmp_path: Path, place: list[str]
) -> None:
    storage = sharded.storage
    assert storage is not None
    storage.pause = 0.002
    command = [sys.executable, "-m", "lading", "fetch", "org/sharded", *place, "--json"]
    processes = [subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(process.communicate()[0]) for process in processes]
    assert results[0] == results[1]
    for number, name in enumerate(SHARDS):
        assert (tmp_path / results[0]["folder"] / name).read_bytes() == bytes([number]) * SHARD_BYTES
    assert storage.sent == {Path(name).name: SHARD_BYTES for name in SHARDS}


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


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("setting", ["LADING_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD", "HF_HUB_OFFLINE"])
def test_told_so_no_socket_is_opened(hub: Hub, run: Run, tmp_path: Path, setting: str, source: str) -> None:
    file = tmp_path / "models/org/name/vae/a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    program = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="vae/*")
config.download_if_necessary()
print(config.path)
given = lading.ModelConfig(path="x")
given.download_if_necessary()
from lading.hub import model_folder, open_remote
from lading.hub.fetch import fetch_model
for ask in model_folder, open_remote, fetch_model:
    try:
        print(ask("org/other"))
    except lading.DownloadError as error:
        print(error)
"""
    done = run(NO_SOCKET + program, LADING_DOWNLOAD_SOURCE=source, **{setting: "true"})
    assert done.returncode == 0, done.stderr
    path, *errors = done.stdout.splitlines()
    assert path == "models/org/name/vae/a.safetensors"
    assert len(errors) == 3
    assert all("org/other: " in error and "HF_HUB_OFFLINE and LADING_SKIP_DOWNLOAD" in error for error in errors)
    assert hub.log == []


def test_a_config_that_skips_downloads_opens_no_socket_though_the_environment_allows_it(hub: Hub, run: Run) -> None:
    program = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="vae/*", skip_download=True)
try:
    config.download_if_necessary()
except lading.DownloadError as error:
    print(error)
"""
    done = run(NO_SOCKET + program)
    assert done.stdout.startswith("models/org/name: no file matches 'vae/*': nothing is there"), done.stderr
    config = "lading.ModelConfig(model_id='org/name', origin_file_pattern='vae/c*', skip_download=False)"
    assert run(f"{config}.download_if_necessary()", LADING_SKIP_DOWNLOAD="true").returncode == 0
    assert hub.fetched() == {"vae/config.json"}, "what a config says wins over the environment"


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
