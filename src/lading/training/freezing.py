"""What is trained and what is not, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lading.sizes import format_size

OPTIMIZER_COPIES = 2
"""AdamW keeps a mean and a square of each gradient, in the parameter's dtype."""


def freeze(*modules: torch.nn.Module) -> None:
    """Take all parameters of modules out of training. Adapters that are added afterwards are trained.

    >>> import torch, lading
    >>> network = torch.nn.Linear(4, 4)
    >>> lading.freeze(network)
    >>> lading.trainable_parameters(network)
    {}
    """
    for module in modules:
        module.requires_grad_(False)


def trainable_parameters(*modules: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return what an optimizer is to be made of, by name; of several modules, those of each after the other.

    Names of the second module and the following begin with its number, so that none is lost.
    """
    return {
        f"{number}.{name}" if number else name: parameter
        for number, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


@dataclass(frozen=True)
class Share:
    """Parameters of one kind: trained or frozen, in one dtype.

    Attributes:
        parameters: how many numbers there are.
        weight_bytes: that they take.
        gradient_bytes: that their gradients take in a step.
        optimizer_bytes: that AdamW keeps of them.
    """

    module: str
    trained: bool
    dtype: str
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True)
class TrainingTable:
    """What is trainable, what is frozen, in which dtype, and how many bytes that means. `print` shows it."""

    shares: tuple[Share, ...]

    @property
    def nbytes(self) -> int:
        """Weights, gradients and optimizer states together."""
        return sum(share.weight_bytes + share.gradient_bytes + share.optimizer_bytes for share in self.shares)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("module", "", "dtype", "parameters", "weights", "gradients", "optimizer")]
        for share in self.shares:
            sizes = (share.weight_bytes, share.gradient_bytes, share.optimizer_bytes)
            state = "trained" if share.trained else "frozen"
            rows.append((share.module, state, share.dtype, f"{share.parameters:,}", *map(format_size, sizes)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def training_table(**modules: torch.nn.Module) -> TrainingTable:
    """Return what training modules, given by name, costs in memory beside activations.

    >>> import torch
    >>> print(training_table(head=torch.nn.Linear(4, 4)))
    module           dtype    parameters  weights  gradients  optimizer
    head    trained  float32          20     80 B       80 B      160 B
    """
    return TrainingTable(
        tuple(share for name, module in modules.items() for share in _shares(name, module.parameters()))
    )


def _shares(module: str, parameters: Iterable[torch.nn.Parameter]) -> list[Share]:
    kinds: dict[tuple[bool, str], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        kind = (parameter.requires_grad, str(parameter.dtype).removeprefix("torch."))
        kinds.setdefault(kind, []).append(parameter)
    shares = []
    for (trained, dtype), members in sorted(kinds.items(), reverse=True):
        nbytes = sum(parameter.numel() * parameter.element_size() for parameter in members)
        count = sum(parameter.numel() for parameter in members)
        more = nbytes if trained else 0
        shares.append(Share(module, trained, dtype, count, nbytes, more, OPTIMIZER_COPIES * more))
    return shares
