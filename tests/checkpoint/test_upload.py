"""Loading to a device: right values from a bounded pinned ring, few copies, reads and copies side by side."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from lading import CheckpointError, load_model, load_state_dict, open_checkpoint
from lading.checkpoint import FileReader
from lading.checkpoint.dtypes import as_stored
from lading.checkpoint.reading import PIECE_BYTES
from lading.checkpoint.upload import GROUP_BYTES, SLOTS, Upload
from lading.devices.fake import FakeDevice
from tests.checkpoint.tensor_files import CODES, MB, SHAPES, bits, write
from tests.conftest import write_sparse

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def upload(file: Path, device: Any, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(file)
    reader = FileReader(checkpoint.inventories[0], "once")
    with Upload(device) as way:
        return reader.start_on(way, checkpoint, lambda _: dtype).wait()


@given(
    kinds=st.lists(st.tuples(st.sampled_from(list(CODES)), SHAPES), min_size=1, max_size=6),
    padding=st.integers(0, 70),
    dtype=st.sampled_from([None, torch.bfloat16, torch.float32]),
)
def test_any_tensors_at_any_offset_arrive(
    kinds: list[tuple[torch.dtype, list[int]]], padding: int, dtype: torch.dtype | None
) -> None:
    tensors = {f"{number}": (torch.randn(shape) * 10).to(kind) for number, (kind, shape) in enumerate(kinds)}
    with tempfile.TemporaryDirectory() as folder:
        loaded = upload(write(Path(folder) / "model.safetensors", tensors, padding), FakeDevice(), dtype)
    for name, tensor in tensors.items():
        wanted = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert (loaded[name].dtype, loaded[name].shape) == (wanted.dtype, wanted.shape)
        assert bits(loaded[name]) == bits(wanted)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_slow_link_gets_right_values_through_a_small_ring_in_few_copies(
    tmp_path: Path, dtype: torch.dtype | None
) -> None:
    tensors = {f"large.{n}": torch.randn(3 * PIECE_BYTES // 4 + n * 64) for n in range(8)}
    tensors |= {f"tiny.{n}": torch.randn(64) for n in range(3000)}
    save_file(tensors, tmp_path / "model.safetensors")
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    device = FakeDevice(link_bytes_per_second=1e9)
    loaded = upload(tmp_path / "model.safetensors", device, dtype)
    assert all(torch.equal(loaded[name], tensor.to(dtype or tensor.dtype)) for name, tensor in tensors.items())
    assert device.peak_pinned <= SLOTS * (PIECE_BYTES + 8192)
    assert device.pinned == 0
    assert device.copies <= nbytes / PIECE_BYTES + nbytes / GROUP_BYTES + 20
    assert device.peak <= sum(tensor.nbytes for tensor in loaded.values()) + SLOTS * (PIECE_BYTES + 8192)
    del loaded
    gc.collect()
    assert device.used == 0


def test_reads_and_copies_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a read of 10 ms a piece and a link of 10 ms a piece, one after the other would take twice as long."""
    save_file({"a": torch.zeros(40 * PIECE_BYTES, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    reader = FileReader(checkpoint.inventories[0], "once")
    fill, link = reader._source.fill, PIECE_BYTES / 0.01
    reads: list[tuple[float, float]] = []

    def slow(memory: memoryview, offset: int) -> None:
        start = time.perf_counter()
        fill(memory, offset)
        time.sleep(0.04)  # four threads
        reads.append((start, time.perf_counter()))

    monkeypatch.setattr(reader._source, "fill", slow)
    start = time.perf_counter()
    with Upload(FakeDevice(link)) as way:
        reader.start_on(way, checkpoint, as_stored).wait()
    elapsed = time.perf_counter() - start
    last_read = max(end for _, end in reads) - start
    assert elapsed < last_read + 41 * 0.01 / 2


def test_a_file_that_is_cut_is_an_error_and_nothing_stays_pinned(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(64 * MB, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    reader = FileReader(checkpoint.inventories[0], "once")
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(MB)
    device = FakeDevice()
    with pytest.raises(CheckpointError, match=r"shrank|changed"), Upload(device) as way:
        reader.start_on(way, checkpoint, as_stored).wait()
    assert device.pinned == 0


def test_a_copy_from_memory_that_is_not_pinned_does_not_pass_the_fake_device() -> None:
    device = FakeDevice()
    with pytest.raises(Exception, match="not pinned"):
        device.copy(torch.zeros(4, dtype=torch.uint8), device.empty(4))


@cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float8_e4m3fn])
def test_a_cuda_device_gets_what_the_cpu_gets(tmp_path: Path, dtype: torch.dtype | None) -> None:
    tensors = {f"{n}": torch.randn(PIECE_BYTES // 3 + n) for n in range(12)} | {"ids": torch.arange(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_state_dict(tmp_path / "model.safetensors", torch_dtype=dtype, device="cuda")
    for name, tensor in load_state_dict(tmp_path / "model.safetensors", torch_dtype=dtype).items():
        assert loaded[name].device.type == "cuda"
        assert bits(loaded[name].cpu()) == bits(tensor)


@cuda
def test_a_model_on_a_cuda_device_takes_its_own_bytes_there(tmp_path: Path) -> None:
    save_file({"weight": torch.randn(8192, 8192), "bias": torch.randn(8192)}, tmp_path / "model.safetensors")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    config = {"in_features": 8192, "out_features": 8192}
    model = load_model(torch.nn.Linear, tmp_path / "model.safetensors", config, torch.float32, "cuda")
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    assert torch.cuda.max_memory_allocated() - before < nbytes + 256e6


@cuda
def test_a_transformers_model_on_a_cuda_device_takes_its_own_bytes_there(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=2048, d_ff=8192, num_layers=4, num_heads=32)
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in T5EncoderModel(config).named_parameters()}
    file = write_sparse(tmp_path / "model.safetensors", shapes)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(T5EncoderModel, file, config, torch.bfloat16, "cuda")
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert torch.cuda.max_memory_allocated() - before < nbytes + 256e6
