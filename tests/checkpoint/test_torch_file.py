"""Torch files are read without torch, and never run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tracemalloc
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


@pytest.mark.parametrize("read", [open_checkpoint, load_state_dict, DiskMap])
def test_a_tensor_that_claims_more_than_its_bytes_by_strides_of_nothing_is_refused(
    tmp_path: Path, save: Callable[[Any, Path], Path], read: Callable[[Path], Any]
) -> None:
    small = torch.ones(1).expand(2**20, 2**20)
    file = save({"a": small}, tmp_path / "model.pt")
    assert file.stat().st_size < 5000
    with pytest.raises(CheckpointError, match="claims"):
        read(file)


@pytest.mark.parametrize("read", [open_checkpoint, load_state_dict, DiskMap])
@pytest.mark.parametrize("squeezed", ["data.pkl", "data/0"])
def test_a_compressed_torch_file_is_refused_before_it_is_expanded(
    tmp_path: Path, read: Callable[[Path], Any], squeezed: str
) -> None:
    file = save_zip({"a": torch.zeros(12_500_000)}, tmp_path / "model.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(bomb, "w") as target:
        for name in source.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith(squeezed) or squeezed == "data/0" else zipfile.ZIP_STORED
            target.writestr(name, source.read(name), kind)
    assert bomb.stat().st_size < 51_000 or squeezed == "data.pkl"
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="compressed"):
            read(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def shared_tuple(depth: int = 200) -> bytes:
    """A tuple of two that are one, and so on: a pickle of a few bytes whose hash or text would take for ever."""
    return b")" + b"2\x86" * depth


def storage_pickle(tag: bytes = b"X\x07\0\0\0storage", key: bytes = b"X\x01\0\0\x000") -> bytes:
    return b"(" + tag + b"ctorch\nFloatStorage\n" + key + b"X\x03\0\0\0cpuK\x01tQ"


def tensor_pickle(shape: bytes, stride: bytes = b")") -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage_pickle() + b"K\0" + shape + stride + b"\x89NtR"


ORDERED = b"ccollections\nOrderedDict\n"
BOMBS: dict[str, tuple[bytes, str]] = {
    "a bytearray that is only claimed": (b"\x96" + (2**40).to_bytes(8, "little"), "bytearray"),
    "operations without end": (b"]" * 20_001, "more than 20000 operations"),
    "a memo without end": (b"N" + b"\x94" * 20_001, "more than 20000 operations"),
    "copies of one list": (
        b"](" + b"NN\x86" * 2_000 + b"eq\0" + (ORDERED + b"h\0\x85R") * 9,
        "more than 20000 operations",
    ),
    "a call with many arguments": (ORDERED + b"(" + b"N" * 65 + b"tR", "up to 64 arguments"),
    "a reference of many parts": (b"(" + b"N" * 65 + b"tQ", "up to 64 arguments"),
    "a storage of no name": (storage_pickle(key=shared_tuple()), "unknown object"),
    "a storage of another kind": (storage_pickle(tag=shared_tuple()), "unknown object"),
    "a shape of no numbers": (tensor_pickle(shared_tuple()), "impossible shape"),
    "a shape of many axes": (tensor_pickle(b"(" + b"K\1" * 65 + b"t"), "65 axes"),
    "a long name": (b"}X\xe9\x03\0\0" + b"x" * 1001 + tensor_pickle(b")") + b"s", "more than 1000 characters"),
    "a tensor rebuilt by what copies": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + ORDERED + b"N]\x85tR",
        "a way that torch has none of",
    ),
    "a tensor rebuilt of many parts": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nN(" + b"N" * 65 + b"ttR",
        "a way that torch has none of",
    ),
    "classes without end": (b"".join(b"ctorchao\nA%d\n" % number for number in range(101)), "more than 100 classes"),
    "a byte order of any length": (b"}", "big-endian"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_time_or_memory_without_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("lading.checkpoint.unpickling.MAX_OPERATIONS", 20_000)
    program, reason = BOMBS[name]
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + program + b".")
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/byteorder", bytes(50_000_000) if name.startswith("a byte order") else b"little")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(file)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "program",
    [
        b"}" + shared_tuple() + b"K\1s",
        b"}(" + shared_tuple() + b"K\1u",
        b"(" + shared_tuple() + b"K\1d",
        b"}X\1\0\0\0a\x8f(" + shared_tuple() + b"\x90s",
        b"}X\1\0\0\0a(" + shared_tuple() + b"\x91s",
        ORDERED + b"]" + shared_tuple() + b"K\1\x86a\x85R",
    ],
    ids=["an entry", "entries", "a dict", "a set", "a frozen set", "an ordered dict"],
)
def test_keys_whose_hash_would_take_for_ever_are_left_out(tmp_path: Path, program: bytes) -> None:
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + program + b".")
    assert dict(open_checkpoint(file)) == {}


def test_tensors_may_share_bytes_but_not_to_claim_many_times_what_the_file_holds(
    tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    weight = torch.zeros(100_000)
    tied = save({"embed": weight, "head": weight, "again": weight[:50_000]}, tmp_path / "tied.pt")
    assert len(load_state_dict(tied, "float64")) == 3
    file = save({f"a{number}": weight for number in range(20)}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match=r"share their bytes so often that they claim 8000000 of the file's 4\d+"):
        load_state_dict(file, "float64")


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
