"""Key maps: bijections between a file's names and a network's, for names, shapes and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    Split,
    SplitHeads,
    SwapHalves,
    UnfitShapeError,
)
from lading.catalog.keymap import KeyMap, fuse, permute, rename, split, squeeze, swap_halves

BLOCKS = KeyMap(
    (
        rename("blocks.{n}.norm{i}.{leaf}", "layers.{n}.ln_{i}.{leaf}"),
        split("blocks.{n}.qkv.{leaf}", "layers.{n}.q.{leaf}", "layers.{n}.k.{leaf}", "layers.{n}.v.{leaf}"),
        squeeze("blocks.{n}.conv.{leaf}", "layers.{n}.linear.{leaf}"),
        swap_halves("final.0.{leaf}", "final.{leaf}"),
        permute("projection", "projection.weight", 1, 0),
        fuse("gate.{leaf}", "up.{leaf}", model="gate_up.{leaf}", parts=(1, 2)),
        rename("rest.{rest}", "others.{rest}"),
    )
)


def tensors_of_a_file(layers: int, width: int) -> dict[str, torch.Tensor]:
    shapes = {
        "final.0.weight": (2 * width, width),
        "final.0.bias": (2 * width,),
        "projection": (width, 2 * width),
        "gate.weight": (width, 3),
        "up.weight": (2 * width, 3),
        "rest.a.0.b": (width,),
    }
    for layer in range(layers):
        shapes |= {
            f"blocks.{layer}.norm1.weight": (width,),
            f"blocks.{layer}.norm2.bias": (width,),
            f"blocks.{layer}.qkv.weight": (3 * width, width),
            f"blocks.{layer}.conv.weight": (width, width, 1, 1),
            f"blocks.{layer}.conv.bias": (width,),
        }
    return {
        name: torch.randperm(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
        for name, shape in shapes.items()
    }


@given(layers=st.integers(0, 12), width=st.integers(1, 5))
def test_a_map_and_its_inverse_give_back_names_shapes_and_values(layers: int, width: int) -> None:
    tensors = tensors_of_a_file(layers, width)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    mapped = dict(BLOCKS.tensors(tensors))
    assert BLOCKS.shapes(shapes) == {name: tuple(tensor.shape) for name, tensor in mapped.items()}
    assert len(mapped) == len(tensors) + 2 * layers - 1
    back = dict(BLOCKS.inverse.tensors(mapped))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_tensors_of_equal_shapes_do_not_change_places() -> None:
    qkv = torch.arange(12.0).reshape(6, 2)
    mapped = dict(BLOCKS.tensors({"blocks.0.qkv.weight": qkv, "blocks.1.qkv.weight": -qkv}))
    for layer, sign in ((0, 1), (1, -1)):
        for place, name in enumerate("qkv"):
            assert torch.equal(mapped[f"layers.{layer}.{name}.weight"], sign * qkv[2 * place : 2 * place + 2])


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (Split((1, 1, 4)), [(12, 5)]),
        (Split((1, 2), dim=1), [(5, 6)]),
        (Fuse((1, 1)), [(3, 2), (3, 2)]),
        (SplitHeads(3, 2), [(12, 5)]),
        (FuseHeads(3, 2), [(4, 5), (4, 5), (4, 5)]),
        (Permute((2, 0, 1)), [(2, 3, 4)]),
        (Fold(3), [(12,)]),
        (DropAxes(2), [(3, 4, 1, 1)]),
        (AddAxes(2), [(3, 4)]),
        (Flatten(4, 1), [(1, 5, 1, 1)]),
        (Chain((DropAxes(2), Split((1, 1)))), [(6, 4, 1, 1)]),
        (SwapHalves(1), [(3, 4)]),
    ],
)
def test_a_change_is_undone_by_its_inverse_and_tells_shapes_as_it_makes_tensors(
    change: Change, shapes: list[tuple[int, ...]]
) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    changed = change.tensors(tensors)
    assert change.shapes(shapes) == tuple(tuple(tensor.shape) for tensor in changed)
    assert change.inverse.shapes(change.shapes(shapes)) == tuple(shapes)
    assert all(torch.equal(*pair) for pair in zip(change.inverse.tensors(changed), tensors, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(changed, tensors, strict=False))


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (Split((1, 1, 1)), [(4, 5)]),
        (Split((1, 1), dim=1), [(4,)]),
        (Fuse((1, 2)), [(3, 2), (3, 2)]),
        (Fuse((1, 1)), [(3, 2), (3, 5)]),
        (SplitHeads(3, 4), [(18, 5)]),
        (FuseHeads(2, 3), [(4, 5), (4, 5)]),
        (Permute((1, 0)), [(2, 3, 4)]),
        (Fold(3), [(13,)]),
        (Fold(3).inverse, [(2, 6)]),
        (DropAxes(2), [(3, 4, 2, 1)]),
        (Flatten(4, 1), [(1, 5, 2, 1)]),
        (Flatten(4, 1).inverse, [(5, 1)]),
        (Chain((DropAxes(2), Split((1, 1)))), [(5, 4, 1, 1)]),
        (SwapHalves(), [(3, 4)]),
    ],
)
def test_what_cannot_be_undone_is_refused(change: Change, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(UnfitShapeError):
        change.shapes(shapes)


def test_a_tensor_of_another_shape_is_an_error_that_names_it() -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.0\.qkv\.weight.*does not divide"):
        BLOCKS.shapes({"blocks.0.qkv.weight": (4, 4)})


def test_two_names_that_end_as_one_are_an_error() -> None:
    both = KeyMap((rename("a.{leaf}", "c.{leaf}"), rename("b.{leaf}", "c.{leaf}")))
    with pytest.raises(CheckpointError, match=r"a\.x and b\.x both map to c\.x"):
        both.steps(["a.x", "b.x"])


def test_names_without_a_rule_and_incomplete_groups_are_left() -> None:
    steps, left = BLOCKS.steps(["gate.weight", "nobody", "rest.x"])
    assert [step.targets for step in steps] == [("others.x",)]
    assert sorted(left) == ["gate.weight", "nobody"]


def test_numbers_in_a_rule_are_meant_as_they_are() -> None:
    only = KeyMap((rename("down.{n}.1.{rest}", "x.{n}.{rest}"), rename("down.{n}.{m}.{rest}", "y.{n}.{m}.{rest}")))
    assert only.names(["down.10.1.a", "down.1.10.a", "down.1.2.a.b"]) == {
        "x.10.a": ("down.10.1.a",),
        "y.1.10.a": ("down.1.10.a",),
        "y.1.2.a.b": ("down.1.2.a.b",),
    }
