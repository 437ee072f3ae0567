"""One weight of a managed layer: its true value, held in memory or on the disk, and the copies that compute.

The true value is what the offload state holds. Later states use copies of it, and a copy is let go, never copied back,
unless somebody has written to it. Modules that share a weight share its copies too.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch.utils.weak import TensorWeakRef

from lading.checkpoint import DiskMap
from lading.checkpoint.dtypes import torch_dtype_of
from lading.errors import CheckpointError
from lading.memory.rules import Place, Rules, State

_HELD, _KEEPS_DTYPE, _NAMES = "lading_held", "lading_keeps_dtype", "lading_names"
"""What a parameter itself carries: who holds it, so that ties are seen; that it is never cast; all of its names."""


@dataclass
class Stored:
    """A weight in a checkpoint.

    Attributes:
        dtype: that a state without a dtype of its own gives it.
    """

    disk_map: DiskMap
    name: str
    dtype: torch.dtype

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Read it to the CPU."""
        return self.disk_map.read(self.name, dtype)


class HeldWeight:
    """The true value of one parameter, and the copies of it that are in use.

    Attributes:
        shape: of the parameter.
        trains: whether it takes gradients; one on the disk never does.
    """

    def __init__(self, parameter: torch.nn.Parameter, rules: Rules, stored: Stored | None) -> None:
        self.shape = parameter.shape
        self._keeps_dtype = not parameter.is_floating_point() or getattr(parameter, _KEEPS_DTYPE, False)
        self._rules = rules
        self._stored = stored if rules.offload.on_disk else None
        self.trains = parameter.requires_grad and self._stored is None
        self._dtype = parameter.dtype if stored is None or self._keeps_dtype else stored.dtype
        self._copies: dict[State, TensorWeakRef] = {}
        self._home: torch.nn.Parameter | None = None
        if self._stored is None:
            value = parameter if stored is None else stored.read(self.dtype_at(rules.offload))
            self._home = self._parameter(self._moved(value, rules.offload), parameter)

    @property
    def on_disk(self) -> bool:
        """Whether its true value takes no memory."""
        return self._home is None

    def dtype_at(self, place: Place) -> torch.dtype:
        """Return the dtype that this weight has in a place."""
        return self._dtype if place.dtype is None or self._keeps_dtype else place.dtype

    def nbytes_at(self, place: Place) -> int:
        """Return the memory that it takes in a place."""
        return 0 if place.on_disk else math.prod(self.shape) * self.dtype_at(place).itemsize

    def is_home(self, place: Place) -> bool:
        """Whether the true value itself is what a place asks for."""
        home = self._home
        return home is not None and (
            place.on_disk or (home.device == place.device and home.dtype == self.dtype_at(place))
        )

    def value(self) -> torch.Tensor:
        """Return the true value, from the disk as a call would compute with it."""
        if self._home is not None:
            return self._home.detach()
        assert self._stored is not None
        return self._stored.read(self.dtype_at(self._rules.computation))

    def at(self, state: State, before: torch.nn.Parameter) -> torch.nn.Parameter:
        """Return the parameter to use in a state.

        Args:
            before: that of the state before; what is prepared is made of what is onloaded.

        Raises:
            CheckpointError: it cannot be read.
        """
        place = self._rules.place(state)
        onloaded = state == "preparing" and not self._rules.onload.on_disk
        if self._home is not None and self.is_home(place) and (not onloaded or before is self._home):
            self._home.requires_grad_(self.trains)
            return self._home
        if place.on_disk:
            return self._stand_in()
        reference = self._copies.get(state)
        known = reference() if reference is not None else None
        if isinstance(known, torch.nn.Parameter):
            return known
        source = before if onloaded else self._home
        copy = self._parameter(self._fetched(place) if source is None else self._moved(source, place), source)
        self._copies[state] = TensorWeakRef(copy)
        return copy

    def computing(self, now: torch.nn.Parameter, state: State) -> torch.Tensor:
        """Return it as it computes: what is in use, a copy of that for a while, or what is read for a while.

        Raises:
            CheckpointError: it cannot be read.
        """
        place = self._rules.computation
        if self._rules.place(state).on_disk and self._home is None:
            return self._fetched(place)
        if now.device == place.device and now.dtype == self.dtype_at(place):
            return now
        return (now if now.requires_grad else now.detach()).to(place.device, self.dtype_at(place))

    def write(self, parameter: torch.nn.Parameter) -> None:
        """Take over a value that somebody has written to a copy; what was on the disk is in memory from now on."""
        if self._home is None:
            self._stored = None
            self._home = self._parameter(self._moved(parameter, Place(torch.device("cpu"), None)), parameter)
        elif self._home is not parameter:
            with torch.no_grad():
                self._home.copy_(parameter)
            self._copies.clear()
        self.trains = parameter.requires_grad

    def replace(self, parameter: torch.nn.Parameter) -> None:
        """Take over another parameter that somebody has put into its place."""
        self._copies.clear()
        self._stored = None
        self.shape, self.trains = parameter.shape, parameter.requires_grad
        target = Place(torch.device("cpu"), None) if self._rules.offload.on_disk else self._rules.offload
        self._home = self._parameter(self._moved(parameter, target), parameter)

    def _moved(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return tensor.detach().to(place.device, self.dtype_at(place))

    def _fetched(self, place: Place) -> torch.Tensor:
        assert self._stored is not None
        return self._moved(self._stored.read(self.dtype_at(place)), place)

    def _stand_in(self) -> torch.nn.Parameter:
        """What represents a weight that takes no memory: its shape, its dtype, where it computes, and no value."""
        dtype = self.dtype_at(self._rules.computation)
        nothing = torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=self._rules.device)
        return self._parameter(nothing.expand(self.shape), None)

    def _parameter(self, tensor: torch.Tensor, like: torch.Tensor | None) -> torch.nn.Parameter:
        if isinstance(like, torch.nn.Parameter) and _is_same(tensor, like):
            return like
        with torch.inference_mode(False):
            return torch.nn.Parameter(tensor, requires_grad=self.trains)


def hold(parameter: torch.nn.Parameter, name: str, rules: Rules, disk_map: DiskMap | None) -> HeldWeight:
    """Return what holds a parameter: the same for all modules that share it.

    Args:
        name: of the parameter in the model.

    Raises:
        CheckpointError: the disk map has no such tensor, or one of another shape.
    """
    reference = getattr(parameter, _HELD, None)
    known = reference() if reference is not None else None
    if isinstance(known, HeldWeight):
        return known
    stored = None
    if disk_map is not None and (rules.offload.on_disk or parameter.is_meta):
        stored = _stored(parameter, name, disk_map)
    elif parameter.is_meta:
        raise CheckpointError(f"{name}: the parameter has no value: load the model first, or give a disk_map")
    held = HeldWeight(parameter, rules, stored)
    setattr(parameter, _HELD, weakref.ref(held))
    return held


def note_names(module: torch.nn.Module, prefix: str = "") -> None:
    """Let each parameter know all of its names, so that it is found under any of them on the disk."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(prefix, remove_duplicate=False):
        setattr(parameter, _NAMES, names.setdefault(id(parameter), []))
        names[id(parameter)].append(name)


def keep_dtype(parameter: torch.nn.Parameter) -> None:
    """Let a parameter have its dtype in every place."""
    setattr(parameter, _KEEPS_DTYPE, True)


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape are the same memory."""
    return tensor.data_ptr() == other.data_ptr() and tensor.dtype == other.dtype and tensor.device == other.device


def _stored(parameter: torch.nn.Parameter, name: str, disk_map: DiskMap) -> Stored:
    found = next((other for other in (name, *getattr(parameter, _NAMES, ())) if other in disk_map), None)
    if found is None:
        raise CheckpointError(
            f"{', '.join(map(str, disk_map.checkpoint.files))}: there is no tensor {name!r}: give the disk_map of this "
            "model's checkpoint, with a state_dict_converter that gives its tensors the model's names"
        )
    info = disk_map.info(found)
    if info.shape != tuple(parameter.shape):
        raise CheckpointError(
            f"{info.file}: {found} is {info.shape}, expected {tuple(parameter.shape)}: check that the checkpoint "
            "belongs to the model"
        )
    return Stored(disk_map, found, disk_map.torch_dtype or torch_dtype_of(info))
