"""The processes that train together: one of them, unless a launcher says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Parameters: TypeAlias = "dict[str, torch.nn.Parameter]"


@dataclass(frozen=True)
class World:
    """One process among several.

    Each sees its own batches of a step. Gradients are those of the mean over the processes: each scales its loss by
    their number.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: that is this process's own; None leaves the choice.
        mesh: of processes that hold the denoiser's weights together; None where each has all of them.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None
    mesh: DeviceMesh | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def joined(self, network: torch.nn.Module, parameters: Parameters) -> tuple[torch.nn.Module, Parameters]:
        """Return a network whose gradients are shared with the other processes, and what is trained of it.

        Called before the optimizer is made.
        """
        return network, parameters

    @contextmanager
    def turn(self, network: torch.nn.Module, last: bool) -> Iterator[None]:
        """Hold around a forward and its backward: gradients are shared at the last one of a step."""
        yield

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Hold around work whose results are kept on disk: the first process does it, then the others find it done."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that may be spread over the processes, whole."""
        return tensor

    def gathered(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return tensors whole, to the process that leads; every process calls this, and others may get none."""
        return tensors

    def most(self, count: int) -> int:
        """Return how often each process has to call the network where this one needs it so often."""
        return count

    def total(self, value: torch.Tensor) -> float:
        """Return the sum of a number over the processes."""
        return float(value)

    def wait(self) -> None:
        """Return when every process has come here."""


ALONE = World()
"""One process."""
