"""The one reader: every way gives the same bytes, and whatever happens to a file ends in an error or right values."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lading import CheckpointError, DiskMap, load_state_dict, open_checkpoint
from lading.checkpoint import FileReader
from lading.checkpoint.arena import BLOCK, Arena
from lading.checkpoint.mapping import resident_share
from lading.checkpoint.reading import PIECE_BYTES, Extent, OpenFile, Reading
from lading.checkpoint.ways import Facts, choose_way
from tests.checkpoint.tensor_files import CODES, MB, SHAPES, bits, drop_from_cache, write
from tests.conftest import header_bytes, write_sparse

WAYS = ["mapped", "direct", "buffered"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LADING_READ", request.param)
    return str(request.param)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """96 MB of random bytes in three tensors."""
    file = tmp_path / "big.safetensors"
    save_file({name: torch.randint(0, 255, (32 * MB,), dtype=torch.uint8) for name in "abc"}, file)
    return file


@pytest.fixture
def open_files() -> Iterator[None]:
    """Fail if files stay open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@given(
    kinds=st.lists(st.tuples(st.sampled_from(list(CODES)), SHAPES), min_size=1, max_size=6),
    padding=st.integers(0, 70),
    way=st.sampled_from(WAYS),
    dtype=st.sampled_from([None, "bfloat16", "float16", "float32", "float8_e4m3fn"]),
)
def test_any_tensors_at_any_offset_are_the_same_whichever_way_they_are_read(
    kinds: list[tuple[torch.dtype, list[int]]], padding: int, way: str, dtype: str | None
) -> None:
    tensors = {f"{number}": (torch.randn(shape) * 10).to(dtype=kind) for number, (kind, shape) in enumerate(kinds)}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_READ", way)
        loaded = load_state_dict(write(Path(folder) / "model.safetensors", tensors, padding), torch_dtype=dtype)
    for name, tensor in tensors.items():
        wanted = tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        assert (loaded[name].dtype, loaded[name].shape) == (wanted.dtype, wanted.shape)
        assert bits(loaded[name]) == bits(wanted)


def test_tensors_larger_than_a_piece_and_thousands_of_tiny_ones_are_right(tmp_path: Path, way: str) -> None:
    tensors = {f"tiny.{number}": torch.full((number % 7,), float(number)) for number in range(4000)}
    tensors |= {f"large.{number}": torch.randn(3 * PIECE_BYTES // 4 + number) for number in range(3)}
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    for dtype in (None, torch.bfloat16):
        loaded = load_state_dict(file, torch_dtype=dtype)
        assert all(torch.equal(loaded[name], tensor.to(dtype or tensor.dtype)) for name, tensor in tensors.items())


def test_dozens_of_shards_are_read_side_by_side(tmp_path: Path, way: str) -> None:
    shards = []
    for number in range(48):
        shards.append(tmp_path / f"model-{number + 1:05}-of-00048.safetensors")
        save_file({f"{number}.{letter}": torch.full((1000,), float(number)) for letter in "ab"}, shards[-1])
    loaded = load_state_dict(shards, torch_dtype=torch.float16)
    assert len(loaded) == 96
    assert all(bool((tensor == float(name.split(".")[0])).all()) for name, tensor in loaded.items())


def test_sparse_read_only_and_in_memory_files_are_right(tmp_path: Path, way: str) -> None:
    sparse = write_sparse(tmp_path / "sparse.safetensors", {"hole": [40 * MB]}, 1, "U8")
    sparse.chmod(0o400)
    assert not load_state_dict(sparse)["hole"].any()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder) / "model.safetensors"
        save_file({"a": torch.arange(3 * MB)}, file)
        assert torch.equal(load_state_dict(file)["a"], torch.arange(3 * MB))
        assert torch.equal(load_state_dict(file, torch_dtype="float16")["a"], torch.arange(3 * MB))


def test_the_way_is_chosen_from_the_facts() -> None:
    gigabyte = 10**9
    facts = {
        "direct": Facts(4 * gigabyte, 0.0, "local", 16 * gigabyte),
        "mapped": Facts(4 * gigabyte, 0.9, "local", 16 * gigabyte),
        "mapped, ": Facts(40 * gigabyte, 0.0, "local", 16 * gigabyte),
        "mapped, in memory": Facts(4 * gigabyte, 0.0, "memory", 16 * gigabyte),
        "buffered": Facts(4 * gigabyte, 0.0, "network", 16 * gigabyte),
        "buffered, small": Facts(1000, 0.0, "local", 16 * gigabyte),
        "buffered, again": Facts(4 * gigabyte, 0.0, "local", 16 * gigabyte, "again"),
        "direct, again": Facts(40 * gigabyte, 0.0, "local", 16 * gigabyte, "again"),
        "buffered, once": Facts(4 * gigabyte, 0.9, "local", 16 * gigabyte, "once"),
        "direct, once": Facts(40 * gigabyte, 0.0, "local", 16 * gigabyte, "once"),
    }
    for expected, fact in facts.items():
        assert choose_way(fact).way == expected.split(",")[0], expected


def test_residency_is_seen_and_decides(big: Path) -> None:
    inventory = open_checkpoint(big).inventories[0]
    descriptor = os.open(big, os.O_RDONLY)
    big.read_bytes()
    assert resident_share(descriptor, inventory.stamp.nbytes) > 0.95
    assert FileReader(inventory).choice.way == "mapped"
    drop_from_cache(big)
    assert resident_share(descriptor, inventory.stamp.nbytes) < 0.05
    assert FileReader(inventory).choice.way == "direct"
    os.close(descriptor)


def test_shards_that_do_not_fit_in_memory_together_are_mapped(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_from_cache(big)
    monkeypatch.setattr("lading.host.available_memory", lambda: 2 * big.stat().st_size)
    inventory = open_checkpoint(big).inventories[0]
    assert FileReader(inventory).choice.way == "direct"
    assert FileReader(inventory, together=3 * big.stat().st_size).choice.way == "mapped"


def test_direct_reads_leave_the_page_cache_alone(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", "direct")
    drop_from_cache(big)
    load_state_dict(big)
    descriptor = os.open(big, os.O_RDONLY)
    assert resident_share(descriptor, big.stat().st_size) < 0.05
    os.close(descriptor)


def test_mapped_tensors_keep_their_values_when_the_file_is_cut_or_rewritten(
    big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADING_READ", "mapped")
    expected = {name: tensor.clone() for name, tensor in load_file(big).items()}
    loaded = load_state_dict(big)
    loaded["a"][5] = 7  # what was written to a tensor must survive too
    expected["a"][5] = 7
    with big.open("r+b") as stream:
        stream.seek(-MB, os.SEEK_END)
        stream.write(b"\xff" * MB)
    assert torch.equal(loaded["c"], expected["c"])
    os.truncate(big, 100)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_model_is_saved_over_the_file_that_it_is_mapped_from(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", "mapped")
    loaded = load_state_dict(big)
    expected = loaded["b"].clone()
    header = big.read_bytes()[: open_checkpoint(big)["a"].start]
    with big.open("wb") as stream:
        stream.write(header)
        for tensor in loaded.values():
            stream.write(tensor.numpy().data)
    assert torch.equal(load_file(big)["b"], expected)


def test_a_file_that_somebody_writes_to_is_not_mapped(big: Path) -> None:
    big.read_bytes()
    with big.open("r+b"):
        reader = FileReader(open_checkpoint(big).inventories[0])
        tensor = reader.tensor(open_checkpoint(big)["a"])
        assert reader.choice.way == "buffered"
    os.truncate(big, 10)
    assert int(tensor.sum()) >= 0


def test_a_file_without_a_lease_is_read_even_if_mapping_is_forced(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", "mapped")
    expected = {name: tensor.clone() for name, tensor in load_file(big).items()}
    with big.open("r+b"):
        loaded = load_state_dict(big)
    os.truncate(big, 10)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_only_a_file_that_fits_in_no_memory_is_mapped_without_a_lease_and_a_warning_says_so(
    big: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_file(big)["b"].clone()
    inventory = open_checkpoint(big).inventories[0]
    monkeypatch.setattr("lading.host.available_memory", lambda: 2 * big.stat().st_size)
    with big.open("r+b"):
        alone = FileReader(inventory)
        alone.tensor(inventory.tensors["b"])
        assert alone.choice.way == "buffered"
        assert not caplog.records
        shard = FileReader(inventory, together=3 * big.stat().st_size)
        assert torch.equal(shard.tensor(inventory.tensors["b"]), expected)
    assert shard.choice.way == "mapped"
    assert "without a lease" in caplog.text


SAVE_OVER = """
import sys, torch, lading, safetensors.torch
how, file = sys.argv[1:]
tensors = {name: torch.randn(4 << 20) for name in "abc"}
save = {
    "zip": torch.save,
    "legacy": lambda *args: torch.save(*args, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save_file,
}[how]
safetensors.torch.save_file(tensors, file)
loaded = lading.load_state_dict(file)
assert file in open("/proc/self/maps").read(), "not mapped"
save(loaded, file)
again = lading.load_state_dict(file)
print(all(torch.equal(loaded[name], tensor) and torch.equal(again[name], tensor) for name, tensor in tensors.items()))
"""


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_a_file_is_saved_over_by_torch_and_safetensors_while_its_tensors_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("LADING_READ", "mapped")
    command = [sys.executable, "-c", SAVE_OVER, how, str(tmp_path / "model.pt")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)  # a lease is broken after 45
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "True", "")


def test_a_mapping_and_its_lease_end_with_the_last_tensor(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", "mapped")
    loaded = load_state_dict(big)
    assert str(big) in Path("/proc/self/maps").read_text()
    del loaded
    deadline = time.monotonic() + 5  # the watch may look at it just now
    while str(big) in Path("/proc/self/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert str(big) not in Path("/proc/self/maps").read_text()
    start = time.monotonic()
    os.truncate(big, 10)
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("forced", ["direct", "buffered"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(
    tmp_path: Path, dtype: str | None, forced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADING_READ", forced)
    file = write_sparse(tmp_path / "model.safetensors", {"a": [64 * MB]}, 4, "F32")
    checkpoint = open_checkpoint(file)
    reader = FileReader(checkpoint.inventories[0])
    torch_dtype = getattr(torch, dtype) if dtype else None
    loading = reader.start(checkpoint, lambda _: torch_dtype, lambda _: os.truncate(file, MB))
    with pytest.raises(CheckpointError, match=r"model.safetensors: the file (shrank|changed)"):
        loading.wait()
    reader.close()


def test_a_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened(big: Path, tmp_path: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in load_file(big).items()}
    other = tmp_path / "other"
    other.write_bytes(b"x" * big.stat().st_size)
    checkpoint = open_checkpoint(big)
    drop_from_cache(big)
    replaced = threading.Event()

    def replace(_nbytes: int) -> None:
        if not replaced.is_set():
            replaced.set()
            other.replace(big)

    loaded = FileReader(checkpoint.inventories[0]).start(checkpoint, None, replace).wait()
    assert replaced.is_set()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("open_files")
def test_one_failing_read_stops_the_others_and_gives_one_error(big: Path) -> None:
    """A page that may not be written makes the kernel fail that one read (EFAULT)."""
    inventory = open_checkpoint(big).inventories[0]
    source = OpenFile(inventory)
    arena = Arena(0, inventory.stamp.nbytes)
    memory = arena.view(0, arena.nbytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 2 * PIECE_BYTES
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(address, BLOCK, mmap.PROT_READ) == 0
    arrived: list[int] = []
    reading = Reading(source.tasks([Extent(0, memory)] * 20, arrived.append))
    with pytest.raises(CheckpointError, match=rf"big.safetensors: reading failed at byte {2 * PIECE_BYTES}: Bad addr"):
        reading.wait()
    assert reading.done
    assert sum(arrived) < 20 * inventory.stamp.nbytes / 2
    libc.mprotect(address, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE)
    source.close()


def test_a_cancelled_reading_writes_no_more(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {"a": [512 * MB]}, 1, "U8")
    inventory = open_checkpoint(file).inventories[0]
    source = OpenFile(inventory)
    arena = Arena(0, inventory.stamp.nbytes)
    memory = arena.view(0, arena.nbytes)
    reading = Reading(source.tasks([Extent(0, memory)], None))
    reading.cancel()
    assert reading.done
    memory[:] = b"\x01" * len(memory)
    time.sleep(0.05)
    assert memory[:: 64 * 1024].tobytes() == b"\x01" * (len(memory) // (64 * 1024) + bool(len(memory) % (64 * 1024)))
    with pytest.raises(CheckpointError, match="cancelled"):
        reading.wait()


def test_ctrl_c_ends_a_load_at_once_and_leaves_no_read_behind(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {"a": [1024 * MB]}, 1, "U8")
    checkpoint = open_checkpoint(file)
    arrived: list[int] = []
    waiting, first = threading.Event(), threading.Lock()

    def interrupt(nbytes: int) -> None:
        waiting.wait()
        arrived.append(nbytes)
        if first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)

    loading = FileReader(checkpoint.inventories[0]).start(checkpoint, None, interrupt)
    threading.Timer(0.1, waiting.set).start()  # so that the signal finds this thread waiting
    with pytest.raises(KeyboardInterrupt):
        loading.wait()
    count = len(arrived)
    time.sleep(0.05)
    assert len(arrived) == count < 1024 * MB // PIECE_BYTES


CAST_PEAK = """
import sys
from pathlib import Path
import torch, lading

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024

lading.load_state_dict(lading.shipped_model() / "vae", torch_dtype="float32")
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
tensors = lading.load_state_dict(sys.argv[1], torch_dtype="bfloat16")
print(status("VmHWM") - before - sum(tensor.nbytes for tensor in tensors.values()))
"""


def test_a_cast_takes_the_memory_of_its_result_and_little_more(tmp_path: Path, way: str) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {f"{n}": [16 * MB] for n in range(16)}, 4, "F32")
    if way == "mapped":
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)  # only what is cached is cast from there
    run = subprocess.run([sys.executable, "-c", CAST_PEAK, file], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 256e6


UNREADABLE = """
import os, sys, torch, lading
lading.load_state_dict(lading.shipped_model() / "vae")
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    lading.load_state_dict(sys.argv[1])
except lading.CheckpointError as error:
    print(error)
"""


def test_permission_denied_is_a_clear_error(big: Path) -> None:
    for folder in (big.parent, *big.parent.parents):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o011)
        if folder.name.startswith("pytest-of-"):
            break
    big.chmod(0)
    run = subprocess.run([sys.executable, "-c", UNREADABLE, big], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{big}: cannot be read: Permission denied"


def test_a_disk_map_reads_the_same_tensors(big: Path, way: str) -> None:
    on_disk = DiskMap(big, torch_dtype="float16")
    assert all(torch.equal(on_disk[name], tensor) for name, tensor in load_file(big).items())


def test_a_header_alone_is_a_checkpoint(tmp_path: Path, way: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_bytes({}))
    assert load_state_dict(file) == {}
