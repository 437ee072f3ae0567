"""Hooks by which a module says what it is about to do, and waits for the weights that it needs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from lading.errors import LadingError
from lading.memory.merging import require_unmerged
from lading.memory.outline import Places
from lading.memory.trace import is_tracing

ENTRIES = ("forward", "encode", "decode")
"""Methods that are calls of a module; others are served leaf by leaf."""

Change = Callable[[torch.Tensor], torch.Tensor]


class Server(Protocol):
    """Who serves a watched module."""

    def call(self, entry: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """One call of an entry runs inside."""

    def need(self, name: str, inputs: Iterable[Any] = ()) -> None:
        """A module is about to use its weights, with these inputs where it is called."""

    def is_bound(self, parameter: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the one that a parameter's weights come to."""

    def read(self, parameter: str) -> torch.Tensor:
        """A parameter's true value is wanted, on the CPU."""

    def refuse(self, change: Change) -> None:
        """The module is about to be moved or cast; raise if it must not be."""


@dataclass(frozen=True)
class Survey:
    """What others have done to a module.

    Attributes:
        added_bytes: of parameters that no checkpoint holds.
        compiled: whether there are newly compiled blocks.
    """

    added_bytes: int
    compiled: bool


class _Position(threading.local):
    """Modules that this thread has entered and not left."""

    def __init__(self) -> None:
        self.entered: list[torch.nn.Module] = []


class Watch:
    """Watches a module for a server, until it is ended.

    Args:
        names: module -> its name, as the server knows it; of those that were there before adapters.
        lock: held while a module that was asked for computes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        names: Mapping[torch.nn.Module, str],
        places: Places,
        server: Server,
        lock: threading.RLock,
    ) -> None:
        self._module = module
        self._names = names
        self._server = server
        self._lock = lock
        self._position = _Position()
        self._held: dict[torch.nn.Module, dict[str, str]] = {}
        for parameter, holders in places.items():
            for part, attribute in holders:
                self._held.setdefault(part, {})[attribute] = parameter
        self._hooks = {part: list(self._install(part)) for part in self._held}
        self._state_hooks: list[RemovableHandle] = []
        for part, parameters in self._held.items():
            fill = partial(self._fill_state_dict, parameters=parameters)
            self._state_hooks += (
                part.register_state_dict_post_hook(fill),  # type: ignore[no-untyped-call] # torch types it not
                part.register_load_state_dict_pre_hook(self._refuse_state_dict),  # type: ignore[no-untyped-call] # same
            )
        self._compiled: dict[torch.nn.Module, Callable[..., Any]] = {}
        self._wrap()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        """Copies of the module for a trace share what watches it."""
        return self

    def survey(self) -> Survey:
        """Look at what others may have done to the module since the last time; watch what they compiled from outside.

        Raises:
            LadingError: adapters were merged into weights that are streamed.
        """
        added, compiled = 0, []
        for part in self._module.modules():
            held = self._held.get(part, {})
            added += sum(p.nbytes for name, p in part._parameters.items() if p is not None and name not in held)
            if part._compiled_call_impl is not None and part in self._names and part not in self._compiled:
                compiled.append(part)
            require_unmerged(self._module, part)
        for block in compiled:
            self._compile(block)
        return Survey(added, bool(compiled))

    def block_of(self, part: torch.nn.Module) -> torch.nn.Module:
        """Return the compiled block that a module is in, or the module itself."""
        return next((block for block in self._compiled if any(inner is part for inner in block.modules())), part)

    def end(self) -> None:
        """Leave the module as it was."""
        for hook in (*self._state_hooks, *(hook for hooks in self._hooks.values() for hook in hooks)):
            hook.remove()
        for block, compiled in self._compiled.items():
            block.__dict__["_compiled_call_impl"] = compiled
        for attribute in (*ENTRIES, "_apply"):
            self._module.__dict__.pop(attribute, None)

    def _compile(self, block: torch.nn.Module) -> None:
        """Watch a compiled block as a whole, and not what is in it."""
        compiled = block._compiled_call_impl
        assert compiled is not None
        self._compiled[block] = compiled
        block.__dict__["_compiled_call_impl"] = self._compiled_call(block, compiled)
        for inner in block.modules():
            for hook in self._hooks.pop(inner, ()):
                hook.remove()

    def _wrap(self) -> None:
        for entry in ENTRIES:
            original = getattr(self._module, entry, None)
            if callable(original):
                self._module.__dict__[entry] = self._called(entry, original)

        def apply(change: Change, recurse: bool = True) -> torch.nn.Module:
            self._server.refuse(change)
            return self._module

        self._module.__dict__["_apply"] = apply

    def _called(self, entry: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_tracing():
                return original(*args, **kwargs)
            with self._server.call(entry, args, kwargs):
                return original(*args, **kwargs)

        return call

    def _compiled_call(self, block: torch.nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """What a compiled block becomes: its weights are waited for outside of what is compiled."""

        @functools.wraps(compiled)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self._server.need(self._names[block])
                output = compiled(*args, **kwargs)
            self._need_again(self._names[block], output)
            return output

        return call

    def _install(self, part: torch.nn.Module) -> Iterator[RemovableHandle]:
        name = self._names[part]

        def enter(part: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._enter(part, name, (*args, *kwargs.values()))

        yield part.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        yield part.register_forward_hook(lambda part, _, output: self._leave(part, name, output), always_call=True)

    def _enter(self, part: torch.nn.Module, name: str, inputs: Iterable[Any]) -> None:
        """Have a module's weights in their place, and keep other threads out until it has computed."""
        if is_tracing():
            return
        self._lock.acquire()
        try:
            self._require_untouched(part, name)
            self._server.need(name, inputs)
        except BaseException:
            self._lock.release()
            raise
        self._position.entered.append(part)

    def _require_untouched(self, part: torch.nn.Module, name: str) -> None:
        for attribute, parameter in self._held[part].items():
            bound = part._parameters[attribute]
            if bound is None or not self._server.is_bound(parameter, bound):
                raise LadingError(
                    f"{name}.{attribute} is streamed under a memory limit, and something has put another tensor in "
                    "its place: another offloading, perhaps; use one of them, or end this one with "
                    "manager_of(...).release()"
                )
            if bound.requires_grad:
                raise LadingError(
                    f"{name}.{attribute} is streamed under a memory limit, and frozen: what it learned would be lost; "
                    "call requires_grad_(False) on the module, and train adapters"
                )

    def _leave(self, part: torch.nn.Module, name: str, output: Any) -> None:
        """End what `_enter` began, also after an exception; not what failed to begin."""
        if self._position.entered and self._position.entered[-1] is part:
            self._position.entered.pop()
            self._lock.release()
            self._need_again(name, output)

    def _need_again(self, name: str, output: Any) -> None:
        """Have weights in their place once more where gradients come back."""
        for tensor in torch.utils._pytree.tree_iter(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._server.need(name))  # type: ignore[no-untyped-call] # torch types it not

    def _refuse_state_dict(self, part: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Let nobody load weights into slots, where they would not stay; adapters' may be loaded."""
        found = [prefix + attribute for attribute in self._held[part] if prefix + attribute in state_dict]
        if found:
            raise LadingError(
                f"{found[0]} cannot be loaded: it is streamed from a file under a memory limit; load the other "
                "checkpoint with lading.load_model, or call manager_of(...).release(weights=True) first"
            )

    def _fill_state_dict(
        self,
        part: torch.nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        _metadata: Any,
        parameters: Mapping[str, str],
    ) -> None:
        """Put true weights into a state dict: a slot may hold another unit's, and a suspended module has none."""
        for attribute, parameter in parameters.items():
            if prefix + attribute in state_dict:
                state_dict[prefix + attribute] = self._server.read(parameter)
