"""What a denoiser is given beside a noisy latent: trees of tensors and plain values, kept in files, put in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Tree: TypeAlias = Any
"""Tensors and plain values in dicts, lists and tuples."""

Path: TypeAlias = "tuple[str | int, ...]"

_MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask")
"""What denoisers call the mask of `encoder_hidden_states`: with one, texts of different lengths make a batch."""

_TEXT = "encoder_hidden_states"


@dataclass(frozen=True)
class Conditions:
    """The arguments of one denoiser call for one example, beside the latent and the timestep.

    Attributes:
        arguments: by name; tensors have a batch of 1 where they have a batch.
        timestep_shape: of the timestep after its batch: () for one number, (tokens,) for one to each token.
    """

    arguments: dict[str, Tree]
    timestep_shape: tuple[int, ...] = ()

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], str]:
        """Return the tensors by number, and the tree around them as JSON."""
        tensors: list[torch.Tensor] = []
        outline = _outline(self.arguments, tensors)
        named = {str(number): tensor.detach().cpu().contiguous() for number, tensor in enumerate(tensors)}
        return named, json.dumps({"arguments": outline, "timestep_shape": self.timestep_shape})

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], outline: str) -> Conditions:
        """The inverse of `to_tensors`."""
        content = json.loads(outline)
        return Conditions(_filled(content["arguments"], tensors), tuple(content["timestep_shape"]))

    def to(self, device: torch.device) -> Conditions:
        """Return the same on a device."""
        return Conditions(_on(self.arguments, device), self.timestep_shape)


def batch_paths(one: Tree, two: Tree, path: Path = ()) -> frozenset[Path]:
    """Compare the arguments of a batch of one and of two: return where the batch is a dimension or a list.

    >>> sorted(batch_paths({"text": torch.zeros(1, 3), "ids": torch.zeros(3)}, {"text": torch.zeros(2, 3), "ids": 0}))
    [('text',)]
    """
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        batched = one.ndim == two.ndim > 0 and one.shape[0] == 1 and two.shape[0] == 2
        return frozenset({path}) if batched else frozenset()
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if (len(one), len(two)) == (1, 2):
            return frozenset({path})
        return frozenset().union(
            *(batch_paths(a, b, (*path, n)) for n, (a, b) in enumerate(zip(one, two, strict=False)))
        )
    if isinstance(one, dict) and isinstance(two, dict):
        return frozenset().union(*(batch_paths(one[key], two[key], (*path, key)) for key in one if key in two))
    return frozenset()


def alike(conditions: Sequence[Conditions]) -> list[Conditions]:
    """Lengthen texts to the longest one, with zeros that their mask hides, where the denoiser takes a mask."""
    texts = [each.arguments.get(_TEXT) for each in conditions]
    mask = next((name for name in _MASKS if name in conditions[0].arguments), None)
    if mask is None or not all(isinstance(text, torch.Tensor) and text.ndim == 3 for text in texts):
        return list(conditions)
    longest = max(text.shape[1] for text in texts)  # type: ignore[union-attr] # just seen to be tensors
    whole = all(text.shape[1] == longest for text in texts)  # type: ignore[union-attr]
    if whole and len({each.arguments[mask] is None for each in conditions}) == 1:
        return list(conditions)
    return [Conditions(_lengthened(each.arguments, mask, longest), each.timestep_shape) for each in conditions]


def _lengthened(arguments: dict[str, Tree], mask: str, length: int) -> dict[str, Tree]:
    text, seen = arguments[_TEXT], arguments[mask]
    if seen is None:
        seen = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    more = length - text.shape[1]
    padded = torch.nn.functional.pad
    return {**arguments, _TEXT: padded(text, (0, 0, 0, more)), mask: padded(seen.to(torch.bool), (0, more))}


def signature(conditions: Conditions) -> str:
    """Return what has to be equal for conditions to be in one batch: the tree, and the shapes in it."""
    tensors: list[torch.Tensor] = []
    outline = _outline(conditions.arguments, tensors)
    return f"{outline} {conditions.timestep_shape} {[tuple(tensor.shape) for tensor in tensors]}"


def collate(conditions: Sequence[Conditions], batched: frozenset[Path]) -> Conditions:
    """Put conditions of one signature into a batch.

    Args:
        batched: as `batch_paths` says; what is elsewhere is the same for all.
    """
    return Conditions(_joined([each.arguments for each in conditions], batched, ()), conditions[0].timestep_shape)


def _joined(trees: Sequence[Tree], batched: frozenset[Path], path: Path) -> Tree:
    first = trees[0]
    if path in batched:
        if isinstance(first, torch.Tensor):
            return torch.cat(list(trees))
        if isinstance(first, (list, tuple)):
            return [item for tree in trees for item in tree]
    if isinstance(first, dict):
        return {key: _joined([tree[key] for tree in trees], batched, (*path, key)) for key in first}
    if isinstance(first, (list, tuple)):
        joined = [_joined([tree[n] for tree in trees], batched, (*path, n)) for n in range(len(first))]
        return type(first)(joined)
    # A mask that no pipeline gave, but that lengthened texts have, is one row to each example.
    if isinstance(first, torch.Tensor) and path[-1:] in {(mask,) for mask in _MASKS}:
        return torch.cat(list(trees))
    return first


def _outline(tree: Tree, tensors: list[torch.Tensor]) -> Any:
    """The tree as JSON: each container says what it is, and each tensor stands as its number."""
    if isinstance(tree, torch.Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, dict):
        return {"dict": {key: _outline(value, tensors) for key, value in tree.items()}}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [_outline(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"a {type(tree).__name__} cannot be kept in a file")


def _filled(outline: Any, tensors: dict[str, torch.Tensor]) -> Tree:
    ((kind, content),) = outline.items()
    if kind == "tensor":
        return tensors[str(content)]
    if kind == "dict":
        return {key: _filled(value, tensors) for key, value in content.items()}
    if kind in ("list", "tuple"):
        filled = [_filled(value, tensors) for value in content]
        return tuple(filled) if kind == "tuple" else filled
    return content


def _on(tree: Tree, device: torch.device) -> Tree:
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _on(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_on(value, device) for value in tree)
    return tree
