"""The weights of one layer: which state they are in, and how they compute in each."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.autograd.graph import saved_tensors_hooks

from lading.errors import LadingError
from lading.memory.residency import Residency
from lading.memory.rules import Rules, State
from lading.memory.weights import HeldWeight


class _Slot:
    """Where a module finds one of its parameters, what is shown there, and the weight itself.

    Attributes:
        real: the weight in the layer's state; None if it takes no memory then.
        shown: `real`, or what stands for it.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter | None], attribute: str, held: HeldWeight) -> None:
        self.parameters = parameters
        self.attribute = attribute
        self.held = held
        self.put(held.at("offload"))

    @property
    def now(self) -> torch.nn.Parameter | None:
        """What the module has there now."""
        return self.parameters[self.attribute]

    def put(self, real: torch.nn.Parameter | None) -> None:
        self.real = real
        self.parameters[self.attribute] = self.shown = self.held.shown(real)
        self.version = _version(self.shown)


@dataclass(frozen=True)
class _Refetched:
    """A weight that autograd keeps for a backward pass: what it is, not its memory."""

    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    """Relative to the weight's own."""


class LayerWeights:
    """The parameters and buffers of one layer, which change their place together.

    Attributes:
        name: of the layer in its model.
        state: in which they stay now.
    """

    def __init__(self, name: str, rules: Rules, residency: Residency) -> None:
        self.name = name
        self.rules = rules
        self.state: State = "offload"
        self._residency = residency
        self._slots: dict[str, _Slot] = {}
        self._buffers: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {}
        self._bound = False
        residency.join(self)

    def __deepcopy__(self, _memo: dict[int, Any]) -> NoReturn:
        raise LadingError(
            f"{self.name or 'the model'} is under VRAM management and cannot be copied: load the model again instead"
        )

    def join(self, residency: Residency) -> None:
        """Share a limit with other layers from now on."""
        self._residency = residency
        residency.join(self)

    def is_member(self, residency: Residency) -> bool:
        """Whether it shares this limit."""
        return self._residency is residency

    def add_parameter(
        self, name: str, parameters: dict[str, torch.nn.Parameter | None], attribute: str, held: HeldWeight
    ) -> None:
        """Take care of a parameter: it goes to where the layer's weights are offloaded."""
        self._slots[name] = _Slot(parameters, attribute, held)

    def add_buffer(
        self, name: str, buffers: dict[str, torch.Tensor | None], attribute: str, dtype: torch.dtype | None
    ) -> None:
        """Take care of a buffer: it moves along, in one dtype, to the device that computes and back."""
        self._buffers[name] = (buffers, attribute)
        buffer = buffers[attribute]
        assert buffer is not None
        kept = buffer.dtype if dtype is None or not buffer.is_floating_point() else dtype
        buffers[attribute] = buffer.to(self._buffer_device("offload"), kept)

    def manages(self) -> Iterator[tuple[int, str]]:
        """Tell what it takes care of: the identity of a module's dictionary, and a name in it."""
        for slot in self._slots.values():
            yield id(slot.parameters), slot.attribute
        for buffers, attribute in self._buffers.values():
            yield id(buffers), attribute

    def move(self, state: State) -> None:
        """Bring the weights into a state; where that fails, they stay as they are.

        Raises:
            CheckpointError: they cannot be read.
        """
        with self._residency.lock:
            if state == self.state:
                return
            if self._bound:
                raise LadingError(f"{self.name or 'the model'} computes: it cannot be moved before that is done")
            if state == "preparing" and self.state == "offload":
                self.move("onload")
            self.settle()
            real = {name: slot.held.at(state) for name, slot in self._slots.items()}
            for name, slot in self._slots.items():
                if slot.now is not None:
                    slot.put(real[name])
            self._move_buffers(state)
            self.state = state

    def ready(self) -> None:
        """Have the weights onloaded, and prepared where there is memory for that."""
        with self._residency.lock:
            self.settle()
            if self.state == "offload":
                self.move("onload")
            if self.state == "onload" and self._residency.promotes(self):
                self.move("preparing")

    def settle(self) -> None:
        """Notice what others have done to parameters: written to them, frozen them, put others into their place."""
        if self._bound:
            return
        for slot in self._slots.values():
            now = slot.now
            if now is None:
                continue
            if now is not slot.shown:
                slot.held.replace(now)
                slot.put(slot.held.at(self.state))
            elif _version(now) != slot.version:
                slot.held.write(now)
                slot.version = _version(now)
            slot.held.trains = now.requires_grad

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parameters as they compute, for as long as the caller keeps them."""
        known: dict[int, torch.Tensor] = {}
        found = {}
        with self._residency.lock:
            self.ready()
            for name, slot in self._slots.items():
                if (now := slot.now) is None:
                    continue
                if id(slot.held) not in known:
                    known[id(slot.held)] = now if self._bound else slot.held.computing(slot.real)
                found[name] = known[id(slot.held)]
        return found

    def tensor(self, name: str) -> torch.Tensor | None:
        """Return one parameter as it computes, or None if it is not one of these."""
        with self._residency.lock:
            slot = self._slots.get(name)
            if slot is None or slot.now is None:
                return None
            self.ready()
            return slot.now if self._bound else slot.held.computing(slot.real)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Let the modules that own the parameters see them as they compute."""
        with self._residency.lock:
            if self._bound:
                yield
                return
            tensors = self.tensors()
            temporary = {name: tensor for name, tensor in tensors.items() if tensor is not self._slots[name].shown}
            if not temporary:
                yield
                return
            self._bound = True
            for name, tensor in temporary.items():
                slot = self._slots[name]
                slot.parameters[slot.attribute] = torch.nn.Parameter(tensor, requires_grad=False)
            try:
                with self.refetching(temporary):
                    yield
            finally:
                self._bound = False
                for name in temporary:
                    slot = self._slots[name]
                    slot.parameters[slot.attribute] = slot.shown

    @contextmanager
    def refetching(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Let autograd forget copies of frozen weights, and fetch them again for the backward pass."""
        copies = {_address(tensor): name for name, tensor in tensors.items() if tensor is not self._slots[name].real}
        copies.pop(None, None)
        if not copies or not torch.is_grad_enabled():
            yield
            return

        def pack(tensor: torch.Tensor) -> torch.Tensor | _Refetched:
            name = copies.get(_address(tensor))
            if name is None or tensor.dtype != tensors[name].dtype:
                return tensor
            offset = tensor.storage_offset() - tensors[name].storage_offset()
            return _Refetched(name, tensor.size(), tensor.stride(), offset)

        def unpack(saved: torch.Tensor | _Refetched) -> torch.Tensor:
            if isinstance(saved, torch.Tensor):
                return saved
            again = self.tensor(saved.name)
            assert again is not None
            return again.detach().as_strided(saved.size, saved.stride, again.storage_offset() + saved.offset)

        with saved_tensors_hooks(pack, unpack):
            yield

    def fill(self, state_dict: dict[str, Any], prefix: str, owner: Mapping[str, Any]) -> None:
        """Put true values into the state dict of the module that owns some of the parameters."""
        with self._residency.lock:
            self.settle()
            for slot in self._slots.values():
                key = prefix + slot.attribute
                if (
                    slot.parameters is owner
                    and key in state_dict
                    and not isinstance(state_dict[key], torch.nn.Parameter)
                ):
                    state_dict[key] = slot.held.value()

    def receive(self, state_dict: Mapping[str, Any], prefix: str, owner: Mapping[str, Any]) -> None:
        """Make place for values that are about to be loaded into the module that owns some of the parameters."""
        with self._residency.lock:
            self.settle()
            for slot in self._slots.values():
                if slot.parameters is owner and prefix + slot.attribute in state_dict and slot.shown is not slot.real:
                    slot.parameters[slot.attribute] = slot.held.empty()

    def nbytes_on(self, device: torch.device, state: State, seen: set[int]) -> int:
        """Return the memory that the weights take on a device in a state.

        Args:
            seen: identities of shared weights that have been counted; those counted here are added.
        """
        total = sum(b.nbytes for group, key in self._buffers.values() if (b := group[key]) is not None)
        total = total if state != "offload" and device == self.rules.device else 0
        for slot in self._slots.values():
            if id(slot.held) in seen:
                continue
            seen.add(id(slot.held))
            offload, place = self.rules.offload, self.rules.place(state)
            total += slot.held.nbytes_at(offload) if offload.device == device else 0
            if place.device == device and not slot.held.is_home(state):
                total += slot.held.nbytes_at(place)
        return total

    def _move_buffers(self, state: State) -> None:
        for buffers, attribute in self._buffers.values():
            buffer = buffers[attribute]
            if buffer is not None:
                buffers[attribute] = buffer.to(self._buffer_device(state))

    def _buffer_device(self, state: State) -> torch.device:
        return self.rules.device if state != "offload" else self.rules.offload.device or torch.device("cpu")


def watch_state_dict(module: torch.nn.Module, weights: LayerWeights) -> None:
    """Let a module's state dict hold true values, and let others be loaded."""
    owner = module._parameters
    reference = weakref.ref(weights)

    def receive(_module: torch.nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        found = reference()
        if found is not None:
            found.receive(state_dict, prefix, owner)

    def fill(_module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
        found = reference()
        if found is not None:
            found.fill(state_dict, prefix, owner)

    module.register_load_state_dict_pre_hook(receive)  # type: ignore[no-untyped-call] # torch types it not
    module.register_state_dict_post_hook(fill)  # type: ignore[no-untyped-call] # torch types it not


def _address(tensor: torch.Tensor) -> int | None:
    """What tells a tensor's memory from others'; None where it has none of its own, as wrappers of tensors have."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor has been written to; torch does not count for those of inference mode."""
    return 0 if tensor.is_inference() else tensor._version
