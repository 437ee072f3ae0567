"""`vram_config`, the eight keys: in which device's memory and in which dtype weights are, state by state. Data only.

A layer's weights pass through four states. Offloaded, the model is out of its phase; onloaded, it may be called at any
time; preparing, there was memory to bring the layer nearer to where it computes; in computation for the time of a call.
Each state's weights are made of those in the state before, so that what is rounded once stays rounded.
Source of the names and their meaning: DiffSynth-Studio's documentation, Pipeline_Usage/VRAM_management.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from lading.checkpoint.dtypes import named_dtype
from lading.errors import LadingError
from lading.sizes import parse_size

State: TypeAlias = Literal["offload", "onload", "preparing"]
"""The states in which weights stay; computation is over when a call is."""

DISK = "disk"
KEYS = tuple(
    f"{state}_{what}" for state in ("offload", "onload", "preparing", "computation") for what in ("dtype", "device")
)


@dataclass(frozen=True)
class Place:
    """Where weights are, and in which dtype.

    Attributes:
        device: None for the disk.
        dtype: of floating-point weights; None leaves them as they are.
    """

    device: torch.device | None
    dtype: torch.dtype | None

    @property
    def on_disk(self) -> bool:
        """Whether weights take no memory here."""
        return self.device is None

    def __str__(self) -> str:
        dtype = "" if self.dtype is None else f" in {str(self.dtype).removeprefix('torch.')}"
        return DISK if self.device is None else f"{self.device}{dtype}"


@dataclass(frozen=True)
class Rules:
    """Where a layer's weights are in each state.

    Attributes:
        computation: never the disk.
    """

    offload: Place
    onload: Place
    preparing: Place
    computation: Place

    def place(self, state: State) -> Place:
        """Return where weights stay in a state."""
        return {"offload": self.offload, "onload": self.onload, "preparing": self.preparing}[state]

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        assert self.computation.device is not None
        return self.computation.device

    @property
    def needs_disk(self) -> bool:
        """Whether weights are on the disk in any state."""
        return any(place.on_disk for place in (self.offload, self.onload, self.preparing))

    def without_steps(self) -> Rules:
        """The rules of what is not brought in layer by layer: onloaded, it is where it computes."""
        return replace(self, onload=self.computation, preparing=self.computation)

    def vram_config(self) -> dict[str, Any]:
        """Return the eight keys that say the same."""
        places = zip(("offload", "onload", "preparing", "computation"), self.places, strict=True)
        return {
            f"{state}_{what}": DISK if place.on_disk else getattr(place, what)
            for state, place in places
            for what in ("dtype", "device")
        }

    def __str__(self) -> str:
        return ", then ".join(str(place) for place in self.places)

    @property
    def places(self) -> tuple[Place, Place, Place, Place]:
        """The four, in the order of the states."""
        return self.offload, self.onload, self.preparing, self.computation


def parse_rules(vram_config: Mapping[str, Any]) -> Rules:
    """Return the rules that the eight keys state; a key that is missing or None is as it is in computation.

    Raises:
        LadingError: a key, dtype or device is unknown, or the weights cannot be there.

    >>> rules = parse_rules({"offload_dtype": "disk", "computation_dtype": "bfloat16", "computation_device": "cpu"})
    >>> print(rules)
    disk, then cpu in bfloat16, then cpu in bfloat16, then cpu in bfloat16
    """
    unknown = [key for key in vram_config if key not in KEYS]
    if unknown:
        raise LadingError(f"vram_config has no key {unknown[0]!r}: use {', '.join(KEYS)}")
    given = {key: vram_config.get(key) for key in KEYS}
    if given["computation_device"] is None and given["computation_dtype"] != DISK:
        raise LadingError("vram_config does not say where to compute: give computation_device, such as 'cpu' or 'cuda'")
    computation = _place("computation", given, None)
    if computation.on_disk:
        raise LadingError("vram_config: computation_device='disk': nothing computes on a disk: give 'cpu' or 'cuda'")
    if computation.dtype is not None and computation.dtype.itemsize < 2:
        raise LadingError(
            f"vram_config: computation_dtype={computation.dtype} is for storage: keep weights in it while they are "
            "offloaded, onloaded or preparing, and compute in torch.bfloat16"
        )
    return Rules(
        _place("offload", given, computation),
        _place("onload", given, computation),
        _place("preparing", given, computation),
        computation,
    )


def parse_limit(vram_limit: float | str | None) -> int | None:
    """Return a `vram_limit` in bytes: a number counts GiB, a text names its unit.

    Raises:
        LadingError: it is no size.

    >>> parse_limit(0.5), parse_limit("8GB"), parse_limit(None)
    (536870912, 8000000000, None)
    """
    if vram_limit is None:
        return None
    if isinstance(vram_limit, str):
        return parse_size(vram_limit)
    if isinstance(vram_limit, bool) or not isinstance(vram_limit, (int, float)) or not 0 <= vram_limit < float("inf"):
        raise LadingError(f"vram_limit={vram_limit!r} is no size: give GiB as a number, or a text like '8GB'")
    return round(vram_limit * 2**30)


def _place(state: str, given: Mapping[str, Any], computation: Place | None) -> Place:
    dtype, device = given[f"{state}_dtype"], given[f"{state}_device"]
    for what, value, other in (("device", device, dtype), ("dtype", dtype, device)):
        if value == DISK and other not in (None, DISK):
            raise LadingError(
                f"vram_config: {state}_{what}='disk', and the other of {state}_dtype and {state}_device is {other}: "
                "weights on the disk have the file's dtype: give 'disk' for both"
            )
    if DISK in (dtype, device):
        return Place(None, None)
    if dtype is None and computation is not None:
        dtype = computation.dtype
    if device is None and computation is not None:
        device = computation.device
    return Place(
        _device(f"{state}_device", device), None if dtype is None else _floating_dtype(f"{state}_dtype", dtype)
    )


def _floating_dtype(key: str, value: Any) -> torch.dtype:
    try:
        dtype = named_dtype(value)
    except LadingError as error:
        raise LadingError(f"vram_config: {key}: {error}") from None
    try:
        castable = dtype.is_floating_point and torch.zeros(1, dtype=dtype).float().to(dtype).dtype == dtype
    except (RuntimeError, NotImplementedError):
        castable = False
    if not castable:
        raise LadingError(f"vram_config: {key}={dtype}: weights cannot be cast to it: give a floating-point dtype")
    return dtype


def _device(key: str, value: Any) -> torch.device:
    """Return a device as its tensors name it: with its number, where devices of its kind have one."""
    try:
        device = torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LadingError(f"vram_config: {key}={str(value)!r} is not there: {reason}: give 'cpu' or another") from None
    if device.type == "meta":
        raise LadingError(f"vram_config: {key}='meta' holds no values: give 'disk' for weights that take no memory")
    return device
