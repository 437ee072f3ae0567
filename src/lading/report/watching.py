"""Hooks by which the parts of a pipeline show what they are given and what they make. They change neither."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

from lading.devices import device_clock
from lading.events import Moment
from lading.memory.trace import is_tracing
from lading.report.run import Passed, Picture
from lading.report.tensors import PIPELINE, passed

_METHODS = ("encode", "decode")
"""Beside `forward`, the methods of a part that are calls of it."""
_DRAWN = "prepare_latents"
_PROCESSORS = {"image_processor": ("postprocess",), "video_processor": ("postprocess_video", "postprocess")}
_PICTURE_PIXELS = 512
_TIMES = ("timestep", "timesteps", "t")
_MOST_TIMES = 64
"""A larger tensor of timesteps has one for each token; it is not kept."""


@dataclass(frozen=True)
class Seen:
    """One call of a part, as it was seen.

    Attributes:
        time: what the denoiser was told of the time, to be looked at later: to look now would wait for a device.
    """

    part: str
    entry: str
    start: Moment
    end: Moment
    given: tuple[Passed, ...]
    made: tuple[Passed, ...]
    time: torch.Tensor | float | None


class Watcher:
    """Sees the calls of a pipeline's parts.

    Attributes:
        seen: the calls, in the order of their end.
        picture: the last that was drawn.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.picture: Picture | None = None
        self._inside = self._ended = False

    @contextmanager
    def watching(self, pipeline: Any, parts: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        """See what is called in the block; afterwards everything is as it was."""
        with ExitStack() as stack:
            for name, module in parts.items():
                stack.enter_context(self._watched(name, module))
                for method in _METHODS:
                    stack.enter_context(self._replaced(name, module, method))
            stack.enter_context(self._replaced(PIPELINE, pipeline, _DRAWN))
            for name, methods in _PROCESSORS.items():
                for method in methods:
                    stack.enter_context(self._replaced(PIPELINE, getattr(pipeline, name, None), method))
            try:
                yield
            finally:
                self._ended = True

    @contextmanager
    def _watched(self, name: str, module: torch.nn.Module) -> Iterator[None]:
        """See a module's forward, from outside of what may be compiled."""
        signature = _signature(module.forward)
        if module._compiled_call_impl is not None:
            with self._replaced(name, module, "_compiled_call_impl", "forward", signature):
                yield
            return
        begun: dict[int, list[tuple[Any, ...]]] = {}

        def enter(called: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if called is module and not is_tracing():
                begun.setdefault(threading.get_ident(), []).append(_begin(signature, args, kwargs))

        def leave(called: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            mine = begun.get(threading.get_ident())
            if called is module and mine and not is_tracing():
                self._note(name, "forward", output, *mine.pop())

        hooks = (
            module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _replaced(
        self, part: str, owner: Any, method: str, entry: str = "", signature: inspect.Signature | None = None
    ) -> Iterator[None]:
        """See a method of one object: the object gets its own, and gives it back."""
        original = getattr(owner, method, None)
        if not callable(original) or not hasattr(owner, "__dict__"):
            yield
            return
        own = method in owner.__dict__
        seeing = self._seeing(part, entry or method, original, signature or _signature(original))
        owner.__dict__[method] = seeing
        try:
            yield
        finally:
            if owner.__dict__.get(method) is seeing:
                if own:
                    owner.__dict__[method] = original
                else:
                    del owner.__dict__[method]

    def _seeing(
        self, part: str, entry: str, original: Callable[..., Any], signature: inspect.Signature | None
    ) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            inside = self._inside
            if self._ended or is_tracing() or (part == PIPELINE and inside):
                return original(*args, **kwargs)  # or somebody has wrapped this one, and keeps it
            begun, output = _begin(signature, args, kwargs), None
            self._inside = inside or part == PIPELINE
            try:
                output = original(*args, **kwargs)
            finally:
                self._inside = inside
                self._note(part, entry, output, *begun)
            return output

        return call

    def _note(
        self,
        part: str,
        entry: str,
        output: Any,
        start: Moment,
        clock: Callable[[], Moment],
        given: tuple[Passed, ...],
        time: torch.Tensor | float | None,
    ) -> None:
        self.seen.append(Seen(part, entry, start, clock(), given, passed("output", output), time))
        if entry.startswith("postprocess"):
            self.picture = _small(output) or self.picture


def _begin(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    arguments = _named(signature, args, kwargs)
    given = tuple(one for name, value in arguments.items() for one in passed(name, value))
    clock = device_clock(next((one.device for one in given if one.device != "cpu"), "cpu"))
    time = next((arguments[name] for name in _TIMES if name in arguments), None)
    if isinstance(time, torch.Tensor):
        time = time.detach() if time.numel() <= _MOST_TIMES else None
    elif not isinstance(time, (int, float)):
        time = None
    return clock(), clock, given, time


def _signature(method: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):  # a method that is not Python's
        return None


def _named(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [] if signature is None else list(signature.parameters)
    names += [f"argument {number}" for number in range(len(names), len(args))]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _small(output: Any) -> Picture | None:
    """Return the first picture of an output, at most so large; None where there is none of PIL's."""
    first = output
    while isinstance(first, list) and first:
        first = first[0]
    if not hasattr(first, "thumbnail"):
        return None
    picture = first.copy()
    picture.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    stream = BytesIO()
    picture.save(stream, "PNG")
    return Picture(stream.getvalue(), *first.size)
