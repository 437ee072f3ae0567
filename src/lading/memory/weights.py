"""One weight of a managed layer: its true value, held in memory or on the disk, and the copies that compute.

The true value is what the offload state holds. Later states use copies of it, and a copy is let go, never copied back,
unless somebody has written to it. Modules that share a weight share its copies too. What libraries see as a module's
parameter always has the dtype and the device that it computes with: where the weight is elsewhere, a stand-in does.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch.utils.weak import TensorWeakRef

from lading.checkpoint import DiskMap
from lading.checkpoint.dtypes import torch_dtype_of
from lading.errors import CheckpointError, LadingError
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
        with torch.inference_mode(False):
            return self.disk_map.read(self.name, dtype)


class HeldWeight:
    """The true value of one parameter, and the copies of it that are in use.

    Attributes:
        name: of the parameter in its model.
        shape: of the parameter.
        trains: whether it takes gradients. A weight that moves is frozen at first.
    """

    def __init__(self, name: str, parameter: torch.nn.Parameter, rules: Rules, stored: Stored | None) -> None:
        self.name = name
        self.shape = parameter.shape
        self._keeps_dtype = not parameter.is_floating_point() or getattr(parameter, _KEEPS_DTYPE, False)
        self._rules = rules
        self._stored = stored if rules.offload.on_disk else None
        self._dtype = parameter.dtype if stored is None or self._keeps_dtype else stored.dtype
        moves = len({(place.device, self.dtype_at(place)) for place in rules.places}) > 1
        self.trains = parameter.requires_grad and not moves
        self._copies: dict[State, TensorWeakRef] = {}
        self._stand_in: torch.nn.Parameter | None = None
        self._home: torch.nn.Parameter | None = None
        if self._stored is None:
            value = parameter if stored is None else stored.read(self.dtype_at(rules.offload))
            self._home = self._settled(value, rules.offload)

    def dtype_at(self, place: Place) -> torch.dtype:
        """Return the dtype that this weight has in a place."""
        return self._dtype if place.dtype is None or self._keeps_dtype else place.dtype

    def nbytes_at(self, place: Place) -> int:
        """Return the memory that it takes in a place."""
        return 0 if place.on_disk else math.prod(self.shape) * self.dtype_at(place).itemsize

    def is_home(self, state: State) -> bool:
        """Whether the true value itself is what a state asks for."""
        place, home = self._rules.place(state), self._home
        if home is None or (state == "preparing" and not self._rules.onload.on_disk and not self.is_home("onload")):
            return False
        return place.on_disk or (home.device == place.device and home.dtype == self.dtype_at(place))

    def value(self) -> torch.Tensor:
        """Return the true value, from the disk as a call would compute with it."""
        if self._home is not None:
            return self._home.detach()
        assert self._stored is not None
        return self._stored.read(self.dtype_at(self._rules.computation))

    def at(self, state: State) -> torch.nn.Parameter | None:
        """Return the weight as it is in a state; None where it takes no memory then.

        Raises:
            CheckpointError: it cannot be read.
        """
        place = self._rules.place(state)
        source = self._home
        if place.on_disk:
            return source
        if state == "preparing" and not self._rules.onload.on_disk:
            source = self.at("onload")
        if source is not None and source.device == place.device and source.dtype == self.dtype_at(place):
            source.requires_grad_(self.trains)
            return source
        reference = self._copies.get(state)
        known = reference() if reference is not None else None
        if isinstance(known, torch.nn.Parameter):
            known.requires_grad_(self.trains)
            return known
        copy = self._parameter(self._fetched(place) if source is None else self._moved(source, place))
        self._copies[state] = TensorWeakRef(copy)
        return copy

    def computing(self, real: torch.nn.Parameter | None) -> torch.Tensor:
        """Return the weight as it computes: itself, a copy for a while, or what is read for a while.

        Args:
            real: the weight as it is in the state of the layer that computes.

        Raises:
            CheckpointError: it cannot be read.
            LadingError: it should train, and what computes is a copy.
        """
        place = self._rules.computation
        if real is not None and self.computes(real):
            return real
        if self.trains and torch.is_grad_enabled():
            raise LadingError(
                f"{self.name} should train, and it computes as a copy: {self._rules}: freeze it, or let it be in one "
                "place from onload_device and onload_dtype on"
            )
        return self._fetched(place) if real is None else real.detach().to(place.device, self.dtype_at(place))

    def computes(self, real: torch.Tensor) -> bool:
        """Whether a tensor is where, and in the dtype in which, this weight computes."""
        place = self._rules.computation
        return real.device == place.device and real.dtype == self.dtype_at(place)

    def shown(self, real: torch.nn.Parameter | None) -> torch.nn.Parameter:
        """Return the module's parameter: the weight if it is as it computes, else its stand-in without a value."""
        if real is not None and self.computes(real):
            return real
        if self._stand_in is None:
            dtype, device = self.dtype_at(self._rules.computation), self._rules.device
            with torch.inference_mode(False):
                nothing = torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)
                self._stand_in = self._parameter(nothing.expand(self.shape))
        if self._stand_in.is_floating_point():
            self._stand_in.requires_grad_(self.trains)
        return self._stand_in

    def empty(self) -> torch.nn.Parameter:
        """Return a new parameter to put a value into; see `replace`."""
        place = self._rules.offload
        with torch.inference_mode(False):
            return self._parameter(torch.empty(self.shape, dtype=self.dtype_at(place), device=place.device or "cpu"))

    def write(self, parameter: torch.nn.Parameter) -> None:
        """Take over a value that somebody has written to a copy; what was on the disk is in memory from now on."""
        if self._home is None:
            self.replace(parameter)
        elif self._home is not parameter:
            with torch.no_grad():
                self._home.copy_(parameter)
            self._copies.clear()

    def replace(self, parameter: torch.nn.Parameter) -> None:
        """Take over another parameter that somebody has put into its place."""
        self._copies.clear()
        self._stored = self._stand_in = None
        self.shape, self.trains = parameter.shape, parameter.requires_grad
        target = Place(torch.device("cpu"), None) if self._rules.offload.on_disk else self._rules.offload
        self._home = self._settled(parameter, target)

    def _moved(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return tensor.detach().to(place.device, self.dtype_at(place))

    def _fetched(self, place: Place) -> torch.Tensor:
        assert self._stored is not None
        return self._moved(self._stored.read(self.dtype_at(place)), place)

    def _settled(self, tensor: torch.Tensor, place: Place) -> torch.nn.Parameter:
        """Return a parameter in a place: the given one where it is there."""
        there = tensor.device == place.device and tensor.dtype == self.dtype_at(place)
        return (
            tensor if there and isinstance(tensor, torch.nn.Parameter) else self._parameter(self._moved(tensor, place))
        )

    def _parameter(self, tensor: torch.Tensor) -> torch.nn.Parameter:
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
    held = HeldWeight(name, parameter, rules, stored)
    setattr(parameter, _HELD, weakref.ref(held))
    return held


def note_names(module: torch.nn.Module, prefix: str = "") -> None:
    """Let each parameter know all of its names, so that it is found under any of them on the disk."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(prefix, remove_duplicate=False):
        setattr(parameter, _NAMES, names.setdefault(id(parameter), []))
        names[id(parameter)].append(name)


def require_stored(model: torch.nn.Module, disk_map: DiskMap) -> None:
    """Raise CheckpointError if a disk map lacks a parameter of a model, or has it in another shape."""
    for name, parameter in model.named_parameters():
        _stored(parameter, name, disk_map)


def keep_dtype(parameter: torch.nn.Parameter) -> None:
    """Let a parameter have its dtype in every place."""
    setattr(parameter, _KEEPS_DTYPE, True)


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
