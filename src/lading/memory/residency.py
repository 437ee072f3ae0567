"""Which layers may come nearer to where they compute: decided once per call, by counting what is placed."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lading.memory.states import LayerWeights

_ALL: weakref.WeakSet[Residency] = weakref.WeakSet()
_ALL_LOCK = threading.Lock()


class Residency:
    """The layers of one model, and the limit up to which they are promoted.

    What counts is the memory of the weights that lading manages, on the device that is prepared on, of all models of
    this process. It is counted, not measured: the same calls always lead to the same places.

    Attributes:
        limit: in bytes; None for no limit.
        lock: held while weights move or are replaced for a call.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.lock = threading.RLock()
        self._members: list[weakref.ref[LayerWeights]] = []
        self._promoted: set[int] | None = None
        with _ALL_LOCK:
            _ALL.add(self)

    def join(self, weights: LayerWeights) -> None:
        """Add a layer's weights."""
        self._members.append(weakref.ref(weights))
        self._promoted = None

    def members(self) -> list[LayerWeights]:
        """Return the weights of all layers, in the order of the model."""
        alive = (reference() for reference in self._members)
        return [weights for weights in alive if weights is not None and weights.is_member(self)]

    def onload(self) -> None:
        """Bring all layers into the onload state; those that are prepared stay so."""
        with self.lock:
            for weights in self.members():
                if weights.state == "offload":
                    weights.move("onload")

    def offload(self) -> None:
        """Bring all layers into the offload state."""
        with self.lock:
            for weights in self.members():
                weights.move("offload")
            self._promoted = None

    def promotes(self, weights: LayerWeights) -> bool:
        """Tell whether a layer may be prepared; decides where no call of the model has."""
        with self.lock:
            if self._promoted is None:
                self.decide()
            return self._promoted is not None and id(weights) in self._promoted

    def decide(self) -> None:
        """Decide which layers are prepared from now on, first come first served; those that are stay so."""
        with self.lock:
            members = self.members()
            waiting = [w for w in members if w.state != "preparing" and not w.rules.preparing.on_disk]
            if self.limit is None or not waiting:
                self._promoted = {id(weights) for weights in waiting}
                return
            room: dict[torch.device, int] = {}
            promoted: set[int] = set()
            for weights in waiting:
                device = weights.rules.preparing.device
                assert device is not None
                if device not in room:
                    room[device] = self.limit - _placed_on(device, self) - _called_on(device, members)
                now = weights.nbytes_on(device, "onload", set())
                more = weights.nbytes_on(device, "preparing", set()) - now
                if more <= max(room[device], 0):
                    promoted.add(id(weights))
                    room[device] -= more
            self._promoted = promoted


def _called_on(device: torch.device, members: list[LayerWeights]) -> int:
    """Bytes that a model's weights take on a device once every layer is called, before any is promoted."""
    seen: set[int] = set()
    return sum(
        weights.nbytes_on(device, "onload" if weights.state == "offload" else weights.state, seen)
        for weights in members
    )


def _placed_on(device: torch.device, but: Residency) -> int:
    """Bytes that other models' weights take on a device now."""
    with _ALL_LOCK:
        others = [residency for residency in _ALL if residency is not but]
    total = 0
    for other in others:
        seen: set[int] = set()
        total += sum(weights.nbytes_on(device, weights.state, seen) for weights in other.members())
    return total
