"""Conversion: the right bytes under the target's name, or the source as it was and nothing else."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lading import CheckpointError, convert_checkpoint, hash_model_file, load_model, load_state_dict, shipped_model
from lading.checkpoint import open_checkpoint
from lading.checkpoint.convert import _Writer
from lading.cli import main
from tests.checkpoint.tensor_files import MB, bits
from tests.conftest import write_sparse

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.safetensors"
    tensors = {f"layer.{n}": torch.randn(300, 400) for n in range(20)} | {
        "ids": torch.arange(9),
        "one": torch.tensor(1),
    }
    save_file(tensors, file, {"format": "pt", "author": "somebody"})
    return file


@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=8
    ),
    dtype=st.sampled_from([None, "float16", "bfloat16", "float32", "float8_e4m3fn"]),
    shard=st.sampled_from([None, 1, 1000, 10**9]),
    legacy=st.booleans(),
)
def test_any_tensors_keep_their_bits_or_are_cast_as_torch_casts(
    kinds: list[tuple[torch.dtype, list[int]]], dtype: str | None, shard: int | None, legacy: bool
) -> None:
    tensors = {f"{n}": (torch.randn(shape) * 10).to(kind) for n, (kind, shape) in enumerate(kinds)}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "pytorch_model.bin", Path(folder) / ("out" if shard else "out.safetensors")
        torch.save(tensors, source, _use_new_zipfile_serialization=not legacy)
        files = convert_checkpoint(source, target, dtype, shard)
        assert sorted(Path(folder).iterdir()) == sorted([source, target])
        loaded: dict[str, torch.Tensor] = {}
        for file in files:
            loaded |= load_file(file) if file.suffix == ".safetensors" else {}
        assert load_state_dict(target).keys() == loaded.keys() == tensors.keys()
        assert hash_model_file(target) == hash_model_file(source)
    for name, tensor in tensors.items():
        wanted = tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        assert (loaded[name].dtype, loaded[name].shape) == (wanted.dtype, wanted.shape)
        assert bits(loaded[name]) == bits(wanted)


def test_tensors_of_any_stride_and_tied_ones_are_written_dense(tmp_path: Path) -> None:
    tied = torch.randn(50, 60)
    tensors = {"turned": torch.randn(40, 30).T, "part": torch.randn(10, 10)[:, 3:7], "a": tied, "b": tied}
    torch.save(tensors, tmp_path / "model.pt")
    convert_checkpoint(tmp_path / "model.pt", tmp_path / "out.safetensors", "float16")
    loaded = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(loaded[name], tensor.half()) for name, tensor in tensors.items())


def test_an_open_checkpoint_is_not_opened_again(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    source.rename(tmp_path / "other.safetensors")
    source.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="changed after its header was read"):
        convert_checkpoint(checkpoint, tmp_path / "out.safetensors")
    (tmp_path / "other.safetensors").replace(source)
    convert_checkpoint(checkpoint, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == checkpoint.keys()


def test_metadata_stays_and_a_format_is_stated(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "somebody"}


def test_shards_and_their_index_are_what_diffusers_loads(tmp_path: Path) -> None:
    vae = shipped_model() / "vae"
    files = convert_checkpoint(vae, tmp_path / "vae", "float32", "1MB")
    assert [file.name for file in files[:-1]] == [
        f"diffusion_pytorch_model-{n:05}-of-{len(files) - 1:05}.safetensors" for n in range(1, len(files))
    ]
    assert len(files) > 4
    (tmp_path / "vae" / "config.json").write_bytes((vae / "config.json").read_bytes())
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae", dtype=torch.float32)
    ours = load_model(AutoencoderKL, vae, torch_dtype=torch.float32)
    for (name, one), (other_name, other) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in theirs.state_dict().values())
    convert_checkpoint(files[-1], tmp_path / "merged.safetensors", "float16")
    merged, shipped = load_file(tmp_path / "merged.safetensors"), load_state_dict(vae)
    assert all(torch.equal(merged[name], tensor) for name, tensor in shipped.items())


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("out.bin", {}, "ends in"),
        ("out", {}, "ends in"),
        ("out.safetensors", {"max_shard_size": "1MB"}, "folder"),
        ("nowhere/out.safetensors", {}, "no folder"),
        ("source.safetensors", {}, "is there already"),
        ("full", {"max_shard_size": "1MB"}, "is there already"),
        ("out.safetensors", {"torch_dtype": "complex128"}, "safetensors has no dtype"),
    ],
)
def test_a_bad_target_is_refused_before_a_byte_is_written(
    source: Path, tmp_path: Path, target: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before, content = sorted(tmp_path.rglob("*")), source.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(source, tmp_path / target, **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert source.read_bytes() == content


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_told_before_and_one_that_fills_up_leaves_nothing(
    source: Path, small_disk: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"9.60 MB are needed and 8.\d+ MB are free"):
        convert_checkpoint(source, small_disk / "out.safetensors")
    filled = False

    def fill(_nbytes: int) -> None:
        nonlocal filled
        if not filled:
            filled = True
            (small_disk / "other").write_bytes(b"x" * (small_disk_free(small_disk) - 4096))

    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        convert_checkpoint(source, small_disk / "out.safetensors", "float16", on_bytes=fill)
    assert [file.name for file in small_disk.iterdir()] == ["other"]


def small_disk_free(folder: Path) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize


def test_a_limit_on_file_sizes_is_a_clear_error(source: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            convert_checkpoint(source, tmp_path / "out.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [source]


def test_a_disk_that_gives_back_other_bytes_is_found_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = _Writer.write

    def write_and_flip(writer: _Writer) -> None:
        write(writer)
        file = next((tmp_path / ".out.safetensors.incomplete").iterdir())
        with file.open("r+b") as stream:
            stream.seek(-5, os.SEEK_END)
            byte = stream.read(1)
            stream.seek(-5, os.SEEK_END)
            stream.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(_Writer, "write", write_and_flip)
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        convert_checkpoint(source, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [source]


KILLED = """
import os, signal, sys, lading
count = 0
def stop(nbytes):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
lading.convert_checkpoint(sys.argv[1], sys.argv[2], "bfloat16", on_bytes=stop)
"""


@pytest.mark.parametrize("kill", ["SIGKILL", "SIGINT"])
def test_a_killed_run_leaves_the_source_and_no_target_and_the_next_one_succeeds(tmp_path: Path, kill: str) -> None:
    source = write_sparse(tmp_path / "source.safetensors", {f"{n}": [8 * MB] for n in range(12)}, 4, "F32")
    target = tmp_path / "out.safetensors"
    run = subprocess.run([sys.executable, "-c", KILLED, source, target, kill], capture_output=True)
    assert run.returncode in (-signal.SIGKILL, -signal.SIGINT, 1)
    assert not target.exists()
    assert kill == "SIGKILL" or list(tmp_path.iterdir()) == [source]
    convert_checkpoint(source, target, "bfloat16")
    assert sorted(tmp_path.iterdir()) == [target, source]
    assert open_checkpoint(target).nbytes == open_checkpoint(source).nbytes // 2


def test_two_processes_do_not_write_the_same_target(source: Path, tmp_path: Path) -> None:
    def again(_nbytes: int) -> None:
        with pytest.raises(CheckpointError, match="another process is writing it"):
            convert_checkpoint(source, tmp_path / "out.safetensors")

    convert_checkpoint(source, tmp_path / "out.safetensors", on_bytes=again)
    assert bits(load_file(tmp_path / "out.safetensors")["layer.3"]) == bits(load_file(source)["layer.3"])


PEAK = """
import sys
from pathlib import Path
import torch, lading

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024

lading.hash_model_file(sys.argv[1])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
lading.convert_checkpoint(sys.argv[1], sys.argv[2], "bfloat16")
print(status("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    source = write_sparse(tmp_path / "source.safetensors", {f"{n}": [32 * MB] for n in range(8)}, 4, "F32")
    run = subprocess.run(
        [sys.executable, "-c", PEAK, source, tmp_path / "out.safetensors"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 256e6


def test_the_command_writes_and_says_what(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "out.safetensors"), "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out.safetensors'}  4.80 MB")
    assert main(["convert", str(source), str(tmp_path / "out"), "--max-shard-size", "4MB", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["files"]) == 4
    assert main(["convert", str(source), str(tmp_path / "out"), "--max-shard-size", "4MB"]) == 1
    assert "is there already" in capsys.readouterr().err
