"""A state dict on disk: names are free, a tensor costs its own bytes, and no more however often it is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lading import CheckpointError, DiskMap
from lading.checkpoint import FileReader
from tests.conftest import write_sparse


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.arange(3)}, one)
    save_file({"c": torch.ones(2).half()}, two)
    return [one, two]


def test_names_are_known_without_reading(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(FileReader, "start", refuse)
    on_disk = DiskMap(files)
    assert sorted(on_disk) == sorted(on_disk.keys()) == ["a", "b", "c"]
    assert len(on_disk) == 3
    assert "a" in on_disk
    assert "z" not in on_disk
    with pytest.raises(KeyError):
        on_disk["z"]


def test_an_item_is_that_tensor_cast_when_asked(files: list[Path]) -> None:
    assert torch.equal(DiskMap(files)["a"], torch.arange(4.0))
    cast = DiskMap(files, torch_dtype="float64")
    assert cast["a"].dtype == cast["c"].dtype == torch.float64
    assert cast["b"].dtype == torch.int64


def test_a_converter_renames_and_drops_without_reading(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk = DiskMap(files, state_dict_converter=lambda names: {f"new.{name}": names[name] for name in ("a", "c")})
    assert sorted(on_disk) == ["new.a", "new.c"]
    assert torch.equal(on_disk["new.a"], torch.arange(4.0))
    assert "a" not in on_disk


def test_a_converter_that_computes_is_a_clear_error(files: list[Path]) -> None:
    def split(state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return {"x": state_dict["a"].chunk(2)[0]}

    with pytest.raises(CheckpointError, match="more than rename"):
        DiskMap(files, state_dict_converter=split)


def test_it_is_read_only(files: list[Path]) -> None:
    with pytest.raises(TypeError):
        DiskMap(files)["a"] = torch.ones(1)  # type: ignore[index] # on purpose


PROGRAM = """
import resource, sys, lading
on_disk = lading.DiskMap(sys.argv[1])
on_disk["layer.0"]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(3):
    for name in on_disk:
        on_disk[name]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_at_one_tensor_however_often_it_is_used(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {f"layer.{n}": [32 << 20] for n in range(10)}, 1, "U8")
    run = subprocess.run([sys.executable, "-c", PROGRAM, file], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2 * (32 << 20)
