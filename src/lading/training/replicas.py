"""Processes that a launcher such as torchrun has started: each sees its part of every step.

Each holds the model, or all of them hold its denoiser together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

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
        if not self._trained:
            return
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


@dataclass(frozen=True)
class Shards(Replicas):
    """One of several processes that hold a network's weights together, as `load_model` spreads them over a mesh.

    What is trained and not spread, such as adapters, each of them has.
    """

    def joined(self, network: torch.nn.Module, parameters: Parameters) -> tuple[torch.nn.Module, Parameters]:
        super().joined(network, {name: each for name, each in parameters.items() if not isinstance(each, DTensor)})
        return network, parameters

    @contextmanager
    def turn(self, network: torch.nn.Module, last: bool) -> Iterator[None]:
        assert isinstance(network, FSDPModule)
        network.set_requires_gradient_sync(last)
        with super().turn(network, last):
            yield

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def gathered(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        kept = {}
        for name, tensor in tensors.items():
            whole = self.whole(tensor.detach())
            if self.leads:
                kept[name] = whole.cpu()
        return kept

    def most(self, count: int) -> int:
        counted = torch.tensor(count, device=self.device)
        dist.all_reduce(counted, dist.ReduceOp.MAX)
        return int(counted)


@contextmanager
def launched(device: str | None = None, sharded: bool = False) -> Iterator[World]:
    """Join the processes that a launcher has started with this one; without a launcher it is alone.

    Args:
        sharded: whether the processes hold the denoiser's weights together, each its rows, or each has all of them.
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
        rank, size, name = dist.get_rank(), dist.get_world_size(), None if place is None else str(place)
        yield Shards(rank, size, name, init_device_mesh(kind, (size,))) if sharded else Replicas(rank, size, name)
        dist.barrier()
    finally:
        dist.destroy_process_group()
