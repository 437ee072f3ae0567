"""Modules that take turns under one limit."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Member(Protocol):
    """A module that takes turns with others.

    Attributes:
        lasting_bytes: what it takes also while another computes: buffers and adapters.
        host_bytes: of host memory that it holds beside a device.
    """

    @property
    def lasting_bytes(self) -> int: ...

    @property
    def host_bytes(self) -> int: ...

    def suspend(self) -> None:
        """Give back the memory of all weights where they compute."""

    def forget(self) -> None:
        """Give back the host memory too."""

    def prefetch(self, nbytes: int) -> None:
        """Start to bring weights, at most so many bytes, for a turn to come."""


@dataclass(frozen=True)
class Turn:
    """What a member needs to compute, and what is left.

    Attributes:
        spare: bytes that nobody needs while it computes.
        host: bytes of host memory that it needs.
        host_limit: bytes of host memory that there are for all.
    """

    spare: int
    host: int
    host_limit: int


class Stage:
    """Modules that take turns under one limit: only the one that computes has its weights where they compute.

    What is left beside it goes to the one that followed it the last time, which finds its first weights there.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._lock = threading.Lock()
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._following: weakref.WeakKeyDictionary[Member, weakref.ref[Member]] = weakref.WeakKeyDictionary()
        self._current: weakref.ref[Member] | None = None

    def join(self, member: Member) -> None:
        """Add a module; components may be loaded in several threads."""
        with self._lock:
            self._members.add(member)

    def expect(self, members: Sequence[Member]) -> None:
        """Tell in which order modules will take their turns, where that is known."""
        for member, following in itertools.pairwise(members):
            self._following.setdefault(member, weakref.ref(following))

    def enter(self, member: Member, turn: Turn) -> None:
        """Send all others off, and let the next one begin to come."""
        self.send_off_others(member)
        previous = self._current() if self._current is not None else None
        if previous is not None and previous is not member:
            self._following[previous] = weakref.ref(member)
        self._current = weakref.ref(member)
        held = sum(other.host_bytes for other in self._others(member))
        for other in self._others(member):
            if held + turn.host > turn.host_limit:
                held -= other.host_bytes
                other.forget()
        following = self._following.get(member)
        successor = following() if following is not None else None
        if successor is not None and turn.spare > 0:
            successor.prefetch(turn.spare)

    def send_off_others(self, member: Member) -> None:
        """Let no other module hold weights where they compute."""
        for other in self._others(member):
            other.suspend()

    def lasting_bytes(self) -> int:
        """What all modules take whoever computes."""
        with self._lock:
            return sum(member.lasting_bytes for member in self._members)

    def _others(self, member: Member) -> list[Member]:
        with self._lock:
            return [other for other in self._members if other is not member]
