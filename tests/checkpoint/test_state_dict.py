"""Files to tensors: bit-equal to safetensors and torch, without needless memory, and never garbage."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lading import CheckpointError, DiskMap, LadingError, load_state_dict, open_checkpoint
from lading.checkpoint import FileReader
from lading.checkpoint.arena import block_ceiling
from lading.checkpoint.pinning import pin_tensors
from lading.devices.fake import FakeDevice
from tests.checkpoint.tensor_files import bits
from tests.conftest import header_bytes

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "half": torch.randn(5).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "ids": torch.arange(3),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 4),
    "eighth": torch.randn(4).to(torch.float8_e5m2),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


@pytest.mark.parametrize("way", ["mapped", "direct", "buffered"])
def test_tensors_equal_what_safetensors_loads(file: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", way)
    expected = load_file(file)
    loaded = load_state_dict(file)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(loaded[name]) == bits(tensor)


def test_a_cast_concerns_floating_point_tensors_and_equals_torch_to(file: Path) -> None:
    loaded = load_state_dict(file, torch_dtype="bf16")
    assert loaded["ids"].dtype == torch.int64
    for name in ("weight", "half", "scalar", "eighth"):
        assert torch.equal(loaded[name], TENSORS[name].to(torch.bfloat16))


def test_writing_to_a_loaded_tensor_never_reaches_the_file(file: Path) -> None:
    before = file.read_bytes()
    load_state_dict(file)["weight"].fill_(9)
    assert file.read_bytes() == before
    assert load_state_dict(file)["weight"][0, 1].item() == 1


def test_files_whose_data_is_misaligned_load_right(tmp_path: Path) -> None:
    data = torch.arange(5, dtype=torch.float32).numpy().tobytes()
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [5], "data_offsets": [1, 21]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\x07" + data)
    assert torch.equal(load_state_dict(file)["b"], torch.arange(5.0))


def test_float4_is_packed_in_pairs_and_float6_is_refused(tmp_path: Path) -> None:
    def write(dtype: str, nbytes: int) -> Path:
        file = tmp_path / f"{dtype}.safetensors"
        entries: dict[str, Any] = {"a": {"dtype": dtype, "shape": [2, 8], "data_offsets": [0, nbytes]}}
        file.write_bytes(header_bytes(entries) + bytes(range(nbytes)))
        return file

    packed = load_state_dict(write("F4", 8))["a"]
    assert packed.dtype == torch.float4_e2m1fn_x2
    assert packed.shape == (2, 4)
    with pytest.raises(CheckpointError, match="float6"):
        load_state_dict(write("F6_E2M3", 12))


def test_a_file_that_changes_after_its_header_was_read_is_an_error(file: Path) -> None:
    inventory = open_checkpoint(file).inventories[0]
    reader = FileReader(inventory)
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=r"shrank|changed"):
        reader.tensor(inventory.tensors["weight"])
    with pytest.raises(CheckpointError, match="changed"):
        FileReader(inventory)


def test_a_disk_map_over_a_file_that_is_replaced_never_gives_garbage(file: Path) -> None:
    on_disk = DiskMap(file)
    first = on_disk["weight"]
    with file.open("r+b") as stream:
        stream.seek(-40, os.SEEK_END)
        stream.write(b"\xff" * 40)
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed"):
        on_disk["weight"]
    assert torch.equal(first, TENSORS["weight"])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_pinned_memory_without_an_accelerator_is_a_clear_error(file: Path) -> None:
    with pytest.raises(LadingError, match="accelerator"):
        load_state_dict(file, pin_memory=True)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_pinned_memory_is_pinned(file: Path) -> None:
    assert all(tensor.is_pinned() for tensor in load_state_dict(file, pin_memory=True).values() if tensor.numel())


def test_pinned_tensors_share_one_block_of_their_size_until_the_last_is_gone(file: Path) -> None:
    device = FakeDevice()
    tensors = load_state_dict(file) | {"turned": torch.arange(6.0).view(2, 3).T}
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    pinned = pin_tensors(tensors, device)
    assert device.pinned == block_ceiling(sum(-(-tensor.nbytes // 64) * 64 for tensor in expected.values()))
    for name, tensor in expected.items():
        assert (pinned[name].dtype, pinned[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(pinned[name]) == bits(tensor)
        device.copy(pinned[name].view(-1), device.empty(tensor.nbytes).view(tensor.dtype))
    device.event().wait()
    last = pinned["weight"][0]
    del pinned
    gc.collect()
    assert device.pinned > 0
    del last
    gc.collect()
    assert device.pinned == 0


@pytest.mark.parametrize("dtype", ["float17", "", "torch.nonsense"])
def test_a_dtype_that_does_not_exist_is_a_clear_error(file: Path, dtype: str) -> None:
    with pytest.raises(LadingError, match="no dtype"):
        load_state_dict(file, torch_dtype=dtype)


def test_a_way_of_reading_that_does_not_exist_is_a_clear_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_READ", "telepathy")
    with pytest.raises(LadingError, match="LADING_READ"):
        load_state_dict(file)
