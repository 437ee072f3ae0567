"""Torch files are read without torch, and never run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lading import CheckpointError, DiskMap, load_state_dict, open_checkpoint


def save_zip(content: Any, file: Path) -> Path:
    torch.save(content, file)
    return file


def save_legacy(content: Any, file: Path) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file


@pytest.fixture(params=[save_zip, save_legacy])
def save(request: pytest.FixtureRequest) -> Callable[[Any, Path], Path]:
    writer: Callable[[Any, Path], Path] = request.param
    return writer


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "plain": base,
        "turned": base.t(),
        "slice": base[1:3, 2:5],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3, 3).half(),
        "brain": torch.randn(5).bfloat16(),
        "eighth": torch.randn(8).to(torch.float8_e4m3fn),
        "whole": torch.arange(7),
        "flag": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "learned": torch.nn.Parameter(torch.randn(2, 2)),
    }


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    same = left.dtype == right.dtype and left.shape == right.shape
    return same and torch.equal(
        left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8)
    )


def test_inventory_and_lazy_reading_agree_with_torch(tmp_path: Path, save: Callable[[Any, Path], Path]) -> None:
    content = tensors()
    if save is save_legacy:
        del content["eighth"]  # torch writes float8 to the older format and cannot read it back
    file = save(content, tmp_path / "model.bin")
    expected = torch.load(file, weights_only=True)
    checkpoint, on_disk, loaded = open_checkpoint(file), DiskMap(file), load_state_dict(file)
    assert list(checkpoint) == list(expected) == list(loaded)
    for name, tensor in expected.items():
        assert checkpoint[name].shape == tuple(tensor.shape), name
        assert f"torch.{checkpoint[name].dtype}" == str(tensor.dtype), name
        assert equal(on_disk[name], tensor), name
        assert equal(loaded[name], tensor), name


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_tensors_of_any_strides_read_right(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], choose: Any
) -> None:
    axes = list(range(len(shape)))
    choose.shuffle(axes)
    tensor = torch.randn(shape).permute(axes)[..., choose.randrange(shape[axes[-1]]) :]
    file = save_zip({"a": tensor}, tmp_path_factory.mktemp("strides") / "model.pt")
    assert equal(DiskMap(file)["a"], tensor)


def test_wrapped_and_nested_checkpoints_give_flat_names(tmp_path: Path) -> None:
    wrapped = save_zip({"state_dict": {"a": torch.ones(2)}}, tmp_path / "wrapped.ckpt")
    nested = save_zip({"ema": {"a": torch.ones(2)}, "step": 7, "lr": [0.1]}, tmp_path / "nested.ckpt")
    assert set(open_checkpoint(wrapped)) == set(load_state_dict(wrapped)) == {"a"}
    assert set(open_checkpoint(nested)) == set(load_state_dict(nested)) == {"ema.a"}


class Payload:
    """What an attacker puts into a checkpoint: unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, save: Callable[[Any, Path], Path], suffix: str
) -> None:
    mark = tmp_path / "ran"
    file = save({"a": torch.ones(2), "b": Payload(mark)}, tmp_path / f"model{suffix}")
    for read in (open_checkpoint, load_state_dict, DiskMap):
        with pytest.raises(CheckpointError, match=r"holds code, (posix|nt)\.system"):
            read(file)
    assert not mark.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "model.bin"
    file.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(CheckpointError, match="holds code"):
        open_checkpoint(file)
    assert not mark.exists()


def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    file = save_zip({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="pickle under the name"):
        load_state_dict(file)


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    small = torch.ones(1).expand(2**20, 2**20)
    file = save_zip({"a": small}, tmp_path / "model.pt")
    assert file.stat().st_size < 5000
    with pytest.raises(CheckpointError, match="claims"):
        open_checkpoint(file)


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    file = save_zip({"a": torch.zeros(10_000)}, tmp_path / "model.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(bomb)


def test_every_truncation_is_an_error_and_never_another_content(
    tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    content = save({"a": torch.arange(100.0), "b": torch.ones(3)}, tmp_path / "whole.bin").read_bytes()
    file = tmp_path / "cut.bin"
    for end in range(0, len(content), 37):
        file.write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)


def test_mutated_torch_files_raise_nothing_but_checkpoint_errors(
    tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    import random

    content = save({"a": torch.arange(4.0), "b": {"c": torch.ones(3)}}, tmp_path / "whole.bin").read_bytes()
    file, choose = tmp_path / "mutated.bin", random.Random(1)
    for _ in range(500):
        mutated = bytearray(content)
        for _ in range(choose.randint(1, 4)):
            mutated[choose.randrange(len(mutated))] = choose.randrange(256)
        file.write_bytes(mutated)
        try:
            open_checkpoint(file)
        except CheckpointError as error:
            assert str(file) in str(error)


def test_dicts_that_share_each_other_do_not_explode(tmp_path: Path) -> None:
    node: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(30):
        node = {"left": node, "right": node}
    with pytest.raises(CheckpointError, match="entries"):
        open_checkpoint(save_zip(node, tmp_path / "model.pt"))


def test_a_torch_file_of_no_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not named tensors"):
        open_checkpoint(save_zip([torch.ones(1)], tmp_path / "model.pt"))


def test_torch_files_are_hashed_without_torch(tmp_path: Path) -> None:
    file = save_zip({"a": torch.ones(1)}, tmp_path / "model.pt")
    program = f"import sys, lading; lading.hash_model_file({str(file)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_copyreg_extensions_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    stream.write(b"\x80\x02\x82\x01.")
    file = tmp_path / "model.bin"
    file.write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match="extension"):
        open_checkpoint(file)
