"""What modules that take turns may take, and where they compute."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lading import host
from lading.devices import Device
from lading.errors import LadingError
from lading.memory.calibration import known_rates
from lading.memory.rates import Rates
from lading.memory.stage import Stage
from lading.sizes import parse_size

_HOST_SHARE = 0.8
"""Of the free host memory, where no limit is given for it."""


@dataclass
class Limits:
    """What modules that take turns may take.

    Attributes:
        memory: bytes where they compute.
        host_memory: bytes of host memory beside a device; of no account on the CPU.
        device: that computes; None is the CPU.
        stage: which of them computes now.
        rates: what first plans predict with.
    """

    memory: int
    host_memory: int = 0
    device: Device | None = None
    stage: Stage = field(default_factory=Stage)
    rates: Rates = field(default_factory=Rates)

    @classmethod
    def of(
        cls, memory_limit: int | str | None, host_memory_limit: int | str | None, device: Device | None
    ) -> Limits | None:
        """Return the limits that arguments ask for; None for none.

        On the CPU, whose memory is the host's, the smaller one counts.
        """
        given = [parse_size(limit) for limit in (memory_limit, host_memory_limit) if limit is not None]
        if not given:
            return None
        if device is None:
            return cls(min(given), rates=known_rates(torch.device("cpu"))[0])
        if memory_limit is None:
            raise LadingError(f"host_memory_limit={host_memory_limit!r} on a device asks for a memory_limit too")
        free = int(_HOST_SHARE * host.available_memory())
        host_memory = free if host_memory_limit is None else parse_size(host_memory_limit)
        return cls(parse_size(memory_limit), host_memory, device, rates=known_rates(device.torch_device)[0])

    def move(self, memory_limit: int | str, host_memory_limit: int | str | None) -> None:
        """Set other limits; a host limit of None stays, and on the CPU the smaller one counts."""
        self.memory = parse_size(memory_limit)
        if host_memory_limit is None:
            return
        if self.device is None:
            self.memory = min(self.memory, parse_size(host_memory_limit))
        else:
            self.host_memory = parse_size(host_memory_limit)
