"""Files on their way: resumed, verified, placed whole or not at all, and only what was asked for."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants

from lading import DownloadError
from lading.hub.huggingface import HuggingFace
from lading.hub.repository import RemoteFile, listed
from lading.hub.transfers import Job, Watcher, fetch_files, jobs_in_folder
from tests.hub.server import COMMIT, Fault, Hub

UNET = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


def fetch(source: HuggingFace, folder: Path, *names: str, watcher: Watcher | None = None) -> None:
    repository = source.repository("org/name")
    fetch_files(source, repository, jobs_in_folder(repository, repository.named(names), folder), watcher or Watcher())


def original(hub: Hub, name: str) -> bytes:
    return (hub.root / "org/name" / name).read_bytes()


def storage_of(hub: Hub) -> Hub:
    assert hub.storage is not None
    return hub.storage


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    storage = storage_of(hub)
    storage.faults = [Fault(UNET, cut=3_000_001), Fault(UNET, cut=10), Fault(UNET, cut=0)]
    fetch(source, tmp_path / "out", UNET)
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert storage.sent == {Path(UNET).name: len(original(hub, UNET))}, "no byte was sent twice"
    ranges = [request.headers.get("Range") for request in storage.log]
    last = len(original(hub, UNET)) - 1
    assert ranges == [None, f"bytes=3000001-{last}", f"bytes=3000011-{last}", f"bytes=3000011-{last}"]


def test_what_an_earlier_process_left_is_completed(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    repository = source.repository("org/name")
    (job,) = jobs_in_folder(repository, repository.named([UNET]), tmp_path / "out")
    job.partial.parent.mkdir(parents=True)
    job.partial.write_bytes(original(hub, UNET)[:1_000_000])
    assert job.missing == job.file.nbytes - 1_000_000
    fetch_files(source, repository, [job], Watcher())
    assert job.target.read_bytes() == original(hub, UNET)
    assert sum(storage_of(hub).sent.values()) == job.file.nbytes - 1_000_000


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    storage_of(hub).faults = [Fault(UNET, cut=100_000), Fault(UNET, whole=True)]
    counted: list[int] = []

    class Counting(Watcher):
        def advance(self, file: RemoteFile, nbytes: int) -> None:
            counted.append(nbytes)

    fetch(source, tmp_path / "out", UNET, watcher=Counting())
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert sum(counted) == len(original(hub, UNET)), "the bar ends where the file does"


@pytest.mark.parametrize(("name", "kind"), [(UNET, "sha256"), (CONFIG, "sha1")])
def test_wrong_bytes_are_named_and_removed(hub: Hub, source: HuggingFace, tmp_path: Path, name: str, kind: str) -> None:
    for server in (hub, storage_of(hub)):
        server.faults = [Fault(name, corrupt=True)]
    with pytest.raises(DownloadError, match=rf"org/name: {name}: what arrived is not .*{kind}.*removed"):
        fetch(source, tmp_path / "out", name)
    assert not (tmp_path / "out" / name).exists()
    assert partials(tmp_path / "out") == []
    storage_of(hub).faults = hub.faults = []
    fetch(source, tmp_path / "out", name)
    assert (tmp_path / "out" / name).read_bytes() == original(hub, name)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again(hub: Hub, source: HuggingFace, tmp_path: Path, status: int) -> None:
    hub.faults = [
        Fault("/api/models/org/name", status=status, headers={"Retry-After": "0"}),
        Fault(f"/tree/{COMMIT}", status=status, headers={"Retry-After": "0"}),
        Fault(CONFIG, times=2, status=status),
    ]
    fetch(source, tmp_path / "out", CONFIG)
    assert (tmp_path / "out" / CONFIG).read_bytes() == original(hub, CONFIG)


def test_a_hub_that_asks_for_an_hour_is_reported_at_once(hub: Hub, source: HuggingFace) -> None:
    hub.faults = [Fault("/api/models/org/name", times=99, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match=r"org/name: .* limits the rate of requests \(429\): wait for 3600 s"):
        source.repository("org/name")
    assert len(hub.log) == 1


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, source: HuggingFace) -> None:
    hub.faults = [Fault("/api/models/org/name", times=99, status=503)]
    with pytest.raises(DownloadError, match=r"is in trouble \(503\): try again later"):
        source.repository("org/name")


def test_a_silent_connection_is_dropped_and_resumed(
    hub: Hub, source: HuggingFace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    storage_of(hub).faults = [Fault(UNET, stall=2.0)]
    fetch(source, tmp_path / "out", UNET)
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert len(storage_of(hub).log) == 2


def test_a_connection_that_gives_nothing_is_given_up_and_what_came_stays(
    hub: Hub, source: HuggingFace, tmp_path: Path
) -> None:
    storage_of(hub).faults = [Fault(UNET, cut=50_000), Fault(UNET, times=99, cut=0)]
    with pytest.raises(DownloadError, match=f"org/name: {UNET}: .* cannot be reached"):
        fetch(source, tmp_path / "out", UNET)
    assert not (tmp_path / "out" / UNET).exists()
    assert [file.stat().st_size for file in partials(tmp_path / "out")] == [50_000]


def test_a_token_goes_to_the_hub_and_not_where_it_redirects(hub: Hub, tmp_path: Path, source: HuggingFace) -> None:
    hub.tokens = {"org/name": "hf_secret"}
    fetch(HuggingFace("hf_secret", hub.endpoint), tmp_path / "out", UNET, CONFIG)
    assert all(request.headers.get("Authorization") == "Bearer hf_secret" for request in hub.log)
    assert storage_of(hub).log
    assert all("hf_secret" not in str(request.headers) for request in storage_of(hub).log)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "vae\\..\\x", "C:/x", "a//b", "vae/../x", "./x", "a\nb"])
def test_a_listing_with_a_hostile_name_is_refused(hub: Hub, source: HuggingFace, name: str) -> None:
    hub.extra = {name: 1}
    with pytest.raises(DownloadError, match="which is no name inside a folder: refused"):
        source.repository("org/name")


def test_a_listing_with_a_hostile_digest_is_refused() -> None:
    with pytest.raises(DownloadError, match="digest"):
        listed("org/name", None, COMMIT, [RemoteFile("x", 1, "../../../etc/passwd")])


def test_what_the_disk_cannot_take_is_refused_before_the_first_byte(
    hub: Hub, source: HuggingFace, tmp_path: Path
) -> None:
    hub.extra = {"huge.txt": 10**18}
    with pytest.raises(DownloadError, match=r"org/name: 1000000 TB are missing and the disk of .* free: make room"):
        fetch(source, tmp_path / "out", CONFIG, "huge.txt")
    assert hub.fetched() == set()
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_meanwhile_is_an_error_and_what_came_is_resumed(
    hub: Hub, source: HuggingFace, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")

    class Filling(Watcher):
        def start(self, jobs: Sequence[Job]) -> None:
            (disk / "another").write_bytes(bytes(12 << 20))

    try:
        with pytest.raises(DownloadError, match=f"org/name: {UNET}: the disk is full: make room"):
            fetch(source, disk / "out", UNET, watcher=Filling())
        assert not (disk / "out" / UNET).exists()
        (disk / "another").unlink()
        fetch(source, disk / "out", UNET)
        assert (disk / "out" / UNET).read_bytes() == original(hub, UNET)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_at_once_fetch_a_file_once(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    storage_of(hub).pause = 0.001
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fetch(source, tmp_path / "out", UNET)
        except BaseException as error:  # noqa: BLE001 - carried to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(storage_of(hub).sent.values()) == len(original(hub, UNET))
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)


def test_what_a_user_edited_is_kept_and_weights_that_were_cut_are_not(
    hub: Hub, source: HuggingFace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name, content in ((CONFIG, b"{}"), (UNET, b"cut"), ("model_index.json", original(hub, "model_index.json"))):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    fetch(source, out, CONFIG, UNET, "model_index.json")
    assert (out / CONFIG).read_bytes() == b"{}"
    assert (out / UNET).read_bytes() == original(hub, UNET)
    assert hub.fetched() == {UNET}


def test_a_link_out_of_the_folder_is_not_followed(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DownloadError, match="a link out of"):
        fetch(source, tmp_path / "out", UNET)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_one_failure_ends_the_others(hub: Hub, source: HuggingFace, tmp_path: Path) -> None:
    hub.faults = [Fault(CONFIG, times=99, status=403)]
    storage_of(hub).pause = 0.01
    with pytest.raises(DownloadError, match=rf"{CONFIG}: .* forbids it \(403\)"):
        fetch(source, tmp_path / "out", UNET, CONFIG)
    assert not (tmp_path / "out" / UNET).exists()
    assert sum(storage_of(hub).sent.values()) < len(original(hub, UNET))
