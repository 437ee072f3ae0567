"""Origins: the stretches of a file that make a network's tensor are, one after the other, what the change makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lading import CheckpointError
from lading.catalog.change import (
    AddAxes,
    Chain,
    Change,
    DropAxes,
    Flatten,
    Fold,
    Fuse,
    FuseHeads,
    Permute,
    Same,
    Split,
    SplitHeads,
    Spread,
    SwapHalves,
    Unfold,
)
from lading.catalog.keymap import KeyMap, Rule, rename, split
from lading.catalog.origin import find_origins
from lading.checkpoint import open_checkpoint
from lading.checkpoint.reader import FileReader

ROWS: list[tuple[Change, list[tuple[int, ...]]]] = [
    (Same(), [(3, 2)]),
    (Split((1, 1, 4)), [(12, 5)]),
    (Fuse((1, 2)), [(3, 5), (6, 5)]),
    (SplitHeads(3, 2), [(24, 5)]),
    (FuseHeads(2, 4), [(8, 5), (8, 5)]),
    (SwapHalves(), [(6, 2)]),
    (Fold(3), [(12,)]),
    (Unfold(3), [(3, 4)]),
    (DropAxes(2), [(6, 4, 1, 1)]),
    (AddAxes(2), [(6, 4)]),
    (Flatten(4, 1), [(1, 6, 1, 1)]),
    (Spread(4, 1), [(6,)]),
    (Chain((DropAxes(2), Split((1, 1, 1)))), [(6, 4, 1, 1)]),
    (Chain((Split((1, 1, 1)), Fuse((1, 1, 1)))), [(6, 4)]),
]
ELEMENTS: list[tuple[Change, list[tuple[int, ...]]]] = [
    (Permute((1, 0)), [(4, 6)]),
    (Split((1, 2), 1), [(4, 6)]),
    (Fuse((1, 1), 1), [(4, 3), (4, 3)]),
    (SwapHalves(1), [(4, 6)]),
    (Chain((Permute((1, 0)), Split((1, 1)))), [(4, 6)]),
]


def write(folder: Path, change: Change, shapes: list[tuple[int, ...]]) -> tuple[KeyMap, dict[str, torch.Tensor]]:
    """A file for one rule, after a tensor of odd length, so that nothing is aligned by chance."""
    torch.manual_seed(1)
    sources = {f"source{letter}": torch.randn(shape).bfloat16() for letter, shape in zip("ab", shapes, strict=False)}
    save_file({"aaa": torch.ones(7, dtype=torch.uint8), **sources}, folder / "model.safetensors")
    results = change.shapes(shapes)
    targets = tuple(f"target{letter}" for letter, _ in zip("abc", results, strict=False))
    key_map = KeyMap((Rule(tuple(sources), targets, change),))
    return key_map, dict(key_map.tensors(sources))


@pytest.mark.parametrize(("change", "shapes"), ROWS, ids=lambda value: type(value).__name__)
def test_what_moves_rows_is_read_from_its_place(tmp_path: Path, change: Change, shapes: list[tuple[int, ...]]) -> None:
    key_map, expected = write(tmp_path, change, shapes)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    reader = FileReader(checkpoint.inventories[0])
    found = find_origins(key_map, checkpoint)
    assert found.keys() == {"aaa", *expected}
    for name, tensor in expected.items():
        origin = found[name]
        assert origin.is_plain
        assert origin.shape == tuple(tensor.shape)
        runs = [reader.tensor(run) for run in origin.runs]
        assert torch.equal(torch.cat([run.flatten() for run in runs]).view(origin.shape), tensor)


@pytest.mark.parametrize(("change", "shapes"), ELEMENTS, ids=lambda value: type(value).__name__)
def test_what_moves_single_elements_is_left_to_the_change(
    tmp_path: Path, change: Change, shapes: list[tuple[int, ...]]
) -> None:
    key_map, expected = write(tmp_path, change, shapes)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    reader = FileReader(checkpoint.inventories[0])
    for name, origin in find_origins(key_map, {"sourcea": checkpoint["sourcea"], **checkpoint}).items():
        if name in expected:
            assert not origin.is_plain
            assert origin.change is not None
            made = origin.change.tensors([reader.tensor(run) for run in origin.runs])[origin.part]
            assert torch.equal(made, expected[name])


def test_tensors_that_are_not_stored_in_rows_are_left_to_the_change(tmp_path: Path) -> None:
    torch.save({"qkv": torch.arange(24.0).view(4, 6).T}, tmp_path / "model.pt")
    key_map = KeyMap((split("qkv", "q", "k", "v"),))
    assert not any(origin.is_plain for origin in find_origins(key_map, open_checkpoint(tmp_path / "model.pt")).values())
    renamed = find_origins(KeyMap((rename("qkv", "q"),)), open_checkpoint(tmp_path / "model.pt"))
    assert not renamed["q"].is_plain


def test_a_shape_that_does_not_divide_is_an_error_that_names_file_and_tensor(tmp_path: Path) -> None:
    save_file({"qkv": torch.ones(5, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'qkv': axis 0 of size 5"):
        find_origins(KeyMap((split("qkv", "q", "k", "v"),)), open_checkpoint(tmp_path / "model.safetensors"))
