"""Measuring a machine for the plans of a model: its disk, its bus, and the kernels that the model itself runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lading.loading.blueprint import read_blueprint
from lading.loading.planning import device_of, prepare
from lading.loading.runs import Wish
from lading.memory.calibration import calibrate, rates_file
from lading.memory.kernels import kernels_of
from lading.memory.rates import Rates
from lading.sizes import format_count, format_size

SECONDS = 45.0
"""That are spent on kernels: with the disk, and what has to be imported, about a minute."""


@dataclass(frozen=True)
class Measured:
    """What a machine can do; `print` it."""

    device: str
    rates: Rates

    def as_dict(self) -> dict[str, Any]:
        """For JSON; rates in bytes, or floating-point operations, per second."""
        rates = self.rates
        return {
            "device": self.device,
            "read": rates.read,
            "copy": None if self.device == "cpu" else rates.copy,
            "memory": rates.memory,
            "compute": self._compute(),
            "kernels": len(rates.speeds),
            "file": str(rates_file()),
        }

    def __str__(self) -> str:
        rates = self.rates
        lines = [f"disk     {format_size(round(rates.read))}/s"]
        lines += [] if self.device == "cpu" else [f"copies   {format_size(round(rates.copy))}/s"]
        lines += [f"memory   {format_size(round(rates.memory))}/s"]
        lines += [f"compute  {format_count(rate, 'G')}FLOPS in {dtype}" for dtype, rate in self._compute().items()]
        return "\n".join([*lines, f"kept in {rates_file()}: {len(rates.speeds)} kernels of {self.device}"])

    def _compute(self) -> dict[str, float]:
        """The fastest product in each dtype."""
        found: dict[str, float] = {}
        for speed in self.rates.speeds:
            if speed.operator == "product":
                found[speed.dtype] = max(found.get(speed.dtype, 0.0), speed.rate)
        return found


def calibrate_for(
    model: str | os.PathLike[str] | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    torch_dtype: Any = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    variant: str | None = None,
    seconds: float = SECONDS,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    **wish: Any,
) -> Measured:
    """Measure this machine, in about a minute, and keep the rates in the user's cache folder for later plans.

    Args:
        model: whose own kernels are measured first, and its own files' disk where it is here; see `plan` for the rest.
        seconds: to spend on kernels.
        on_progress: told how many kernels have been measured, and of how many.

    Raises:
        LadingError: the device is not there, or nothing can be written.
    """
    place = device_of(device, memory_limit is not None or host_memory_limit is not None)
    files, kernels = [], []
    if model is not None:
        blueprint = read_blueprint(model, True, revision, variant)
        prepared = prepare(blueprint, Wish(**wish), torch_dtype, place)
        for call in prepared.calls:
            kernels += kernels_of(prepared.prospects[call.component].module, call.args, call.kwargs, call.entry, place)
        for network in blueprint.networks.values():
            checkpoint = network.checkpoint() if blueprint.place in ("folder", "file") else None
            files += list(checkpoint.files) if checkpoint is not None else []
    files = [file for file in files if file.stat().st_size >= LEAST_FILE_BYTES]
    rates = calibrate(place, files, kernels, seconds, lambda what, done, of: on_progress(done, of))
    return Measured(str(place), rates)


LEAST_FILE_BYTES = 256 << 20
"""Smaller files tell nothing about a disk."""
