"""Files on their way from either hub: resumed, verified, placed whole or not at all, and only what was asked for."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants

from lading import DownloadError
from lading.hub import stream
from lading.hub.huggingface import HuggingFace
from lading.hub.modelscope import ModelScope
from lading.hub.repository import RemoteFile, listed
from lading.hub.source import Source
from lading.hub.transfers import Job, Watcher, fetch_files, jobs_in_folder
from tests.hub.server import COMMIT, Fault, Hub

UNET = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


@pytest.fixture(params=["huggingface", "modelscope"])
def source(request: pytest.FixtureRequest, source: HuggingFace, modelscope: ModelScope) -> Source:
    """Either hub, through its own client."""
    return source if request.param == "huggingface" else modelscope


def fetch(source: Source, folder: Path, *names: str, watcher: Watcher | None = None) -> None:
    repository = source.repository("org/name")
    fetch_files(source, repository, jobs_in_folder(repository, repository.named(names), folder), watcher or Watcher())


def original(hub: Hub, name: str) -> bytes:
    return (hub.root / "org/name" / name).read_bytes()


def storage_of(hub: Hub) -> Hub:
    assert hub.storage is not None
    return hub.storage


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, source: Source, tmp_path: Path) -> None:
    storage = storage_of(hub)
    storage.faults = [Fault(UNET, cut=3_000_001), Fault(UNET, cut=10), Fault(UNET, cut=0)]
    fetch(source, tmp_path / "out", UNET)
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert storage.sent == {Path(UNET).name: len(original(hub, UNET))}, "no byte was sent twice"
    ranges = [request.headers.get("Range") for request in storage.log]
    last = len(original(hub, UNET)) - 1
    assert ranges == [None, f"bytes=3000001-{last}", f"bytes=3000011-{last}", f"bytes=3000011-{last}"]


def test_what_an_earlier_process_left_is_completed(hub: Hub, source: Source, tmp_path: Path) -> None:
    repository = source.repository("org/name")
    (job,) = jobs_in_folder(repository, repository.named([UNET]), tmp_path / "out")
    job.partial.parent.mkdir(parents=True)
    job.partial.write_bytes(original(hub, UNET)[:1_000_000])
    assert job.missing == job.file.nbytes - 1_000_000
    fetch_files(source, repository, [job], Watcher())
    assert job.target.read_bytes() == original(hub, UNET)
    assert sum(storage_of(hub).sent.values()) == job.file.nbytes - 1_000_000


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: Hub, source: Source, tmp_path: Path) -> None:
    storage_of(hub).faults = [Fault(UNET, cut=100_000), Fault(UNET, whole=True)]
    counted: list[int] = []

    class Counting(Watcher):
        def advance(self, file: RemoteFile, nbytes: int) -> None:
            counted.append(nbytes)

    fetch(source, tmp_path / "out", UNET, watcher=Counting())
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert sum(counted) == len(original(hub, UNET)), "the bar ends where the file does"


@pytest.mark.parametrize("name", [UNET, CONFIG])
def test_wrong_bytes_are_named_and_removed(hub: Hub, source: Source, tmp_path: Path, name: str) -> None:
    kind = "sha1" if name == CONFIG and source.name == "huggingface" else "sha256"
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
def test_a_busy_hub_is_asked_again(hub: Hub, source: Source, tmp_path: Path, status: int) -> None:
    hub.faults = [
        Fault("/api/models/org/name", status=status, headers={"Retry-After": "0"}),
        Fault(f"/tree/{COMMIT}", status=status, headers={"Retry-After": "0"}),
        Fault("/repo/files", status=max(status, 429), headers={"Retry-After": "0"}),
        Fault(CONFIG, times=2, status=status),
    ]
    fetch(source, tmp_path / "out", CONFIG)
    assert (tmp_path / "out" / CONFIG).read_bytes() == original(hub, CONFIG)


def test_a_hub_that_asks_for_an_hour_is_reported_at_once(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.faults = [Fault(CONFIG, times=99, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match=r"org/name: .* limits the rate of requests \(429\): wait for 3600 s"):
        fetch(source, tmp_path / "out", CONFIG)
    assert hub.faults[0].times == 98


@pytest.mark.parametrize(("status", "reason"), [(429, "limits the rate of requests"), (503, "is in trouble")])
def test_a_hub_that_stays_busy_is_asked_ever_more_rarely_and_then_given_up(
    hub: Hub, source: Source, tmp_path: Path, status: int, reason: str
) -> None:
    waits: list[float] = []

    class Hurried(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    hub.faults = [Fault(CONFIG, times=99, status=status)]
    repository = source.repository("org/name")
    (file,) = repository.named([CONFIG])
    with pytest.raises(DownloadError, match=rf"org/name: unet/config\.json: .* {reason} \({status}\)"):
        source.download(repository, file, tmp_path / "partial", lambda _: None, Hurried())
    assert waits == [0.01 * 2**number for number in range(stream.ATTEMPTS - 1)]
    hub.faults = [Fault(path, times=99, status=status) for path in ("/api/models/org/name", "/repo/files")]
    with pytest.raises(DownloadError, match=rf"org/name: .* {reason} \({status}\)"):
        source.repository("org/name")


def test_a_silent_connection_is_dropped_and_resumed(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("modelscope_hub._legacy_api.DOWNLOAD_TIMEOUT", 0.5)
    storage_of(hub).faults = [Fault(UNET, stall=2.0)]
    fetch(source, tmp_path / "out", UNET)
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert len(storage_of(hub).log) == 2


def test_a_connection_that_gives_nothing_is_given_up_and_what_came_stays(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    storage_of(hub).faults = [Fault(UNET, cut=50_000), Fault(UNET, times=99, cut=0)]
    with pytest.raises(DownloadError, match=f"org/name: {UNET}: .* cannot be reached"):
        fetch(source, tmp_path / "out", UNET)
    assert not (tmp_path / "out" / UNET).exists()
    assert [file.stat().st_size for file in partials(tmp_path / "out")] == [50_000]


def test_a_token_goes_to_the_hub_and_not_where_it_redirects(hub: Hub, tmp_path: Path, source: Source) -> None:
    hub.tokens = {"org/name": "hf_secret"}
    kind: type[HuggingFace] | type[ModelScope] = HuggingFace if source.name == "huggingface" else ModelScope
    known = kind("hf_secret", hub.endpoint)
    fetch(known, tmp_path / "out", UNET, CONFIG)
    repository = known.repository("org/name")
    known.read(repository, repository.named([UNET])[0], 0, 8)
    assert all(request.headers.get("Authorization") == "Bearer hf_secret" for request in hub.log)
    assert len(storage_of(hub).log) == 2
    assert all("hf_secret" not in str(request) for request in storage_of(hub).log)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "vae\\..\\x", "C:/x", "a//b", "vae/../x", "./x", "a\nb"])
def test_a_listing_with_a_hostile_name_is_refused(hub: Hub, source: Source, name: str) -> None:
    hub.extra = {name: 1}
    with pytest.raises(DownloadError, match="which is no name inside a folder: refused"):
        source.repository("org/name")


def test_a_file_larger_than_one_request_may_ask_for_comes_in_ranges_and_is_resumed(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_REQUEST_BYTES", 1_000_000)
    storage = storage_of(hub)
    storage.largest = 1_000_000  # as storage refuses to send more than 50 GB at once
    storage.faults = [Fault(UNET, cut=400_000)]
    fetch(source, tmp_path / "out", UNET)
    assert (tmp_path / "out" / UNET).read_bytes() == original(hub, UNET)
    assert storage.sent == {Path(UNET).name: len(original(hub, UNET))}, "no byte was sent twice"
    starts = [int(request.headers["Range"].removeprefix("bytes=").partition("-")[0]) for request in storage.log]
    assert starts[:3] == [0, 400_000, 1_400_000]
    assert len(starts) == 2 + -(-(len(original(hub, UNET)) - 1_400_000) // 1_000_000)


def test_a_listing_with_a_hostile_digest_is_refused() -> None:
    with pytest.raises(DownloadError, match="digest"):
        listed("org/name", None, COMMIT, [RemoteFile("x", 1, "../../../etc/passwd")])


def test_what_the_disk_cannot_take_is_refused_before_the_first_byte(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.extra = {"huge.txt": 10**18}
    with pytest.raises(DownloadError, match=r"org/name: 1000000 TB are missing and the disk of .* free: make room"):
        fetch(source, tmp_path / "out", CONFIG, "huge.txt")
    assert hub.fetched() == set()
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_meanwhile_is_an_error_and_what_came_is_resumed(
    hub: Hub, source: Source, tmp_path: Path
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


def test_two_at_once_fetch_a_file_once(hub: Hub, source: Source, tmp_path: Path) -> None:
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


def test_what_a_user_edited_is_kept_and_weights_that_were_cut_are_not(hub: Hub, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, content in ((CONFIG, b"{}"), (UNET, b"cut"), ("model_index.json", original(hub, "model_index.json"))):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    fetch(source, out, CONFIG, UNET, "model_index.json")
    assert (out / CONFIG).read_bytes() == b"{}"
    assert (out / UNET).read_bytes() == original(hub, UNET)
    assert hub.fetched() == {UNET}


def test_a_link_out_of_the_folder_is_not_followed(hub: Hub, source: Source, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DownloadError, match="a link out of"):
        fetch(source, tmp_path / "out", UNET)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_one_failure_ends_the_others(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.faults = [Fault(CONFIG, times=99, status=403)]
    storage_of(hub).pause = 0.01
    with pytest.raises(DownloadError, match=rf"{CONFIG}: .* forbids it \(403\)"):
        fetch(source, tmp_path / "out", UNET, CONFIG)
    assert not (tmp_path / "out" / UNET).exists()
    assert sum(storage_of(hub).sent.values()) < len(original(hub, UNET))
