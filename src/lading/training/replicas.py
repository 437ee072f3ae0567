"""Processes that a launcher such as torchrun has started: each holds the model and sees its part of every step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from lading.loading.pipeline import default_device
from lading.training.world import ALONE, Parameters, World

_PATIENCE = timedelta(days=1)
"""For the first process, which encodes captions and pictures while the others wait."""


@dataclass(frozen=True)
class Replicas(World):
    """One of several processes that train the same weights, with the mean of their gradients.

    Nothing is wrapped: the network may be streamed, and what is trained may be outside of it, as a word is.
    """

    _trained: list[torch.nn.Parameter] = field(default_factory=list)

    def joined(self, network: torch.nn.Module, parameters: Parameters) -> tuple[torch.nn.Module, Parameters]:
        self._trained[:] = parameters.values()
        for parameter in self._trained:
            dist.broadcast(parameter.data, 0)
        return network, parameters

    @contextmanager
    def turn(self, network: torch.nn.Module, last: bool) -> Iterator[None]:
        yield
        if last:
            self._share_gradients()

    def total(self, value: torch.Tensor) -> float:
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return float(summed)

    def wait(self) -> None:
        dist.barrier()

    def _share_gradients(self) -> None:
        """Give every process the mean of all gradients, in one exchange; who has none of a parameter adds nothing."""
        device = self._trained[0].device
        reached = torch.tensor([parameter.grad is not None for parameter in self._trained], device=device).int()
        dist.all_reduce(reached, dist.ReduceOp.MAX)
        members = [parameter for parameter, any_has in zip(self._trained, reached.tolist(), strict=True) if any_has]
        if not members:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in members]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(members, torch.split(flat, [each.numel() for each in members]), strict=True):
            parameter.grad = mean.view_as(parameter)


@contextmanager
def launched(device: str | None = None) -> Iterator[World]:
    """Join the processes that a launcher has started with this one; without a launcher it is alone.

    Args:
        device: on which each computes; None is the accelerator of the process's own number, else the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    kind = torch.device(device or default_device()).type
    place = None if kind == "cpu" else torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    if place is not None:
        torch.accelerator.set_device_index(place.index)
    dist.init_process_group("gloo" if kind == "cpu" else None, timeout=_PATIENCE)
    try:
        yield Replicas(dist.get_rank(), dist.get_world_size(), None if place is None else str(place))
        dist.barrier()
    finally:
        dist.destroy_process_group()
