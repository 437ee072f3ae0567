"""Low-rank adapters that come and go on a linear layer while its weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lading.errors import LadingError, ShapeError


@dataclass(frozen=True)
class LowRank:
    """One adapter: adds `scale * (x @ a.T @ b.T)` to what a layer returns.

    Attributes:
        a: of shape (rank, in_features).
        b: of shape (out_features, rank).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * (x @ self.a.T.to(x) @ self.b.T.to(x))


class HotLoRA:
    """The adapters of one linear layer, by name, in the order in which they came."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self._features = (in_features, out_features)
        self._adapters: dict[str, LowRank] = {}

    @property
    def scales(self) -> dict[str, float]:
        """Name -> scale of each adapter."""
        return {name: adapter.scale for name, adapter in self._adapters.items()}

    def load(self, name: str, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """Add an adapter, or replace the one of that name.

        Raises:
            ShapeError: the matrices do not fit the layer, or each other.
        """
        inputs, outputs = self._features
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != inputs or b.shape[0] != outputs or a.shape[0] != b.shape[1]:
            raise ShapeError(
                f"LoRA {name!r}: A is {tuple(a.shape)} and B is {tuple(b.shape)}, the layer takes (rank, {inputs}) and "
                f"({outputs}, rank): check that the file belongs to this model"
            )
        self._adapters[name] = LowRank(a.detach(), b.detach(), float(scale))

    def rescale(self, scale: float, name: str | None) -> None:
        """Give an adapter, or all, another scale."""
        for each in self._named(name):
            self._adapters[each] = replace(self._adapters[each], scale=float(scale))

    def clear(self, name: str | None) -> None:
        """Take an adapter, or all, away."""
        for each in self._named(name):
            del self._adapters[each]

    def __call__(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        for adapter in self._adapters.values():
            output = output + adapter(x)
        return output

    def _named(self, name: str | None) -> list[str]:
        if name is None:
            return list(self._adapters)
        if name not in self._adapters:
            raise LadingError(f"there is no LoRA {name!r} on the layer: it has {', '.join(self._adapters) or 'none'}")
        return [name]
