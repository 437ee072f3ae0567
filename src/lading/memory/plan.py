"""Where a module's weights live while it computes, as a table that a person can read."""

from __future__ import annotations

from dataclasses import dataclass

from lading.memory.planner import Placement
from lading.memory.units import Unit
from lading.sizes import format_size


@dataclass(frozen=True)
class ModulePlan:
    """Where a module's weights live while it computes.

    Attributes:
        limit: bytes for everything.
        activation_bytes: the most that tensors of a call take, workspaces included.
        other_bytes: buffers, adapters, fixed parameters, rows of tables and staging.
    """

    name: str
    limit: int
    activation_bytes: int
    other_bytes: int
    placement: Placement
    units: tuple[Unit, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that is taken at a time."""
        return self.activation_bytes + self.other_bytes + self.placement.nbytes

    def __str__(self) -> str:
        placement = self.placement
        slots = sum(placement.slot_sizes)
        rows = [
            ("limit", self.limit, ""),
            ("resident", placement.nbytes - slots, f"{len(placement.resident)} of {len(self.units)} units"),
            ("slots", slots, f"{len(placement.slots)} of up to {format_size(max(placement.slot_sizes, default=0))}"),
            ("activations", self.activation_bytes, ""),
            ("other", self.other_bytes, "buffers, adapters, fixed parameters, rows, staging"),
            ("peak", self.peak_bytes, ""),
            ("streamed", placement.streamed_bytes, f"a call, predicted {placement.seconds:.2f} s"),
        ]
        if placement.host_nbytes:
            rows.append(("host memory", placement.host_nbytes, f"{len(placement.hosted)} streamed units wait there"))
        lines = [f"{what:<12}  {format_size(nbytes):>8}  {note}".rstrip() for what, nbytes, note in rows]
        return "\n".join([self.name, *lines])
