"""A network without weights, planned as its manager plans it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lading.catalog.origin import Origin
from lading.checkpoint.header import TensorInfo
from lading.devices import workspace_bytes
from lading.memory.files import casting_bytes
from lading.memory.image import Weight
from lading.memory.outline import (
    Outline,
    Surroundings,
    find_parts,
    named_as_before,
    parameter_places,
    unit_bytes_of,
)
from lading.memory.plan import ModulePlan
from lading.memory.planner import Placement, next_in_slot, place, simulate, simulate_first
from lading.memory.rates import Rates
from lading.memory.trace import Trace
from lading.sizes import tensor_nbytes

_FILE = Path("model.safetensors")
"""Where weights would be."""


@dataclass(frozen=True)
class Allowance:
    """What a network may take when it computes.

    Attributes:
        memory: bytes where it computes.
        host_memory: bytes of host memory beside a device.
        lasting_bytes: of the memory, what all networks that take turns keep: buffers.
    """

    memory: int
    host_memory: int = 0
    lasting_bytes: int = 0


@dataclass(frozen=True)
class Prediction:
    """How a network will compute.

    Attributes:
        plan: where its weights live.
        outline: its units.
        rates: that seconds are predicted with.
    """

    plan: ModulePlan
    outline: Outline
    rates: Rates

    @property
    def _placement(self) -> Placement:
        return self.plan.placement

    def call_seconds(self, trace: Trace | None) -> float:
        """Predict a call after the first."""
        return simulate(self.outline.work(trace, self.rates), self._placement)

    def first_seconds(self, trace: Trace | None) -> float:
        """Predict the first call, for which everything comes from the disk."""
        fixed = self.outline.fixed.stored_bytes / self.rates.read
        return fixed + simulate_first(self.outline.work(trace, self.rates), self._placement)

    def streamed_bytes(self, trace: Trace | None) -> int:
        """Return the bytes that come to the slots at each call."""
        work = self.outline.work(trace, self.rates)
        return sum(work.nbytes[unit] for unit in next_in_slot(work.visits, self._placement).values())


class Prospect:
    """A network of which nothing is there but its structure, and where its weights will lie.

    Attributes:
        buffer_bytes: of what it keeps whoever computes.
    """

    def __init__(self, module: torch.nn.Module, weights: Mapping[str, Weight], device: torch.device) -> None:
        """Look at a network.

        Args:
            module: with its parameters on the meta device.
            weights: parameter name -> where its bytes are, or would be.
            device: that computes; it need not be there.
        """
        self.module = module
        self._device = device
        self.weights = dict(weights)
        self.buffer_bytes = sum(buffer.nbytes for buffer in module.buffers() if not buffer.is_meta)
        self._places = {name: places for name, places in parameter_places(module).items() if name in weights}
        self._modules = dict(module.named_modules())
        self._unit_bytes = unit_bytes_of(weights)
        copies = device.type != "cpu"
        self._surroundings = Surroundings(
            copies, 0 if copies else casting_bytes(self._unit_bytes), workspace_bytes(device)
        )

    def stored_in(self, dtype: str) -> Prospect:
        """Return the same network with its weights in a file of another dtype; they compute in their own."""
        weights, end = {}, 0
        for name, weight in self.weights.items():
            start, end = end, end + tensor_nbytes(dtype, weight.shape)
            weights[name] = Weight(Origin.of(TensorInfo(dtype, weight.shape, _FILE, start, end)), weight.dtype)
        return Prospect(self.module, weights, self._device)

    @property
    def weight_bytes(self) -> int:
        """Of its parameters, as they compute."""
        return sum(weight.nbytes for weight in self.weights.values())

    def known(self, found: Trace) -> Trace:
        """Return the trace of a call with the names that the network had before adapters came."""
        names = {part: name for name, part in self._modules.items()}
        return named_as_before(found, dict(self.module.named_modules()), names, self._places)

    def minimum_bytes(self, traces: Mapping[str, Trace], lasting_bytes: int) -> int:
        """Return the smallest limit with which it can compute."""
        outline = self._outline(traces)
        return outline.minimum_bytes() + outline.rows_bytes(traces) + _activation_bytes(traces) + lasting_bytes

    def minimum_host_bytes(self, traces: Mapping[str, Trace]) -> int:
        """Return the least host memory that it needs beside a device."""
        return self._outline(traces).minimum_host_bytes()

    def predict(self, traces: Mapping[str, Trace], allowance: Allowance, rates: Rates) -> Prediction | None:
        """Plan it, or return None where the allowance is too small.

        Args:
            traces: by entry, those that have been called by then; the first is the one that is planned for.
        """
        outline = self._outline(traces)
        activation = _activation_bytes(traces)
        others = allowance.lasting_bytes + outline.overhead_bytes + outline.rows_bytes(traces)
        work = outline.work(next(iter(traces.values()), None), rates)
        placement = place(work, allowance.memory - activation - others, allowance.host_memory)
        if placement is None:
            return None
        name = type(self.module).__name__
        return Prediction(
            ModulePlan(name, allowance.memory, activation, others, placement, outline.units), outline, rates
        )

    def _outline(self, traces: Mapping[str, Trace]) -> Outline:
        table_bytes = None if self._surroundings.copies else self._unit_bytes
        parts = find_parts(self._modules, self._places, self.weights, traces, table_bytes)
        return Outline(parts, self.weights, self._unit_bytes, self._surroundings)


def _activation_bytes(traces: Mapping[str, Trace]) -> int:
    return max((trace.activation_bytes for trace in traces.values()), default=0)
