"""Blockwise ControlNets on a transformer: hooks that add to its image stream, block by block, and go again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from lading.errors import ComponentError, ShapeError
from lading.models.blockwise_controlnet import QwenImageBlockwiseControlNet

_TOLERANCE = 1e-4
"""Of a progress, so that a start or an end that was computed meets the step that is meant."""


@dataclass(frozen=True, eq=False)
class BlockwiseControl:
    """A ControlNet with what it follows, how much and when.

    Attributes:
        network: in the transformer's dtype and on its device; resident, or under a memory limit of its own.
        condition: tokens as `condition_tokens` makes them, (1 or batch, tokens, network.condition_channels).
        scale: what its residuals are multiplied by; 0 is no control at all.
        start: the part of the steps that is done when the control begins: 0 is the first step, 1 the last.
        end: the part of the steps that is done when it acts for the last time.
    """

    network: QwenImageBlockwiseControlNet
    condition: torch.Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        shape, channels = tuple(self.condition.shape), self.network.condition_channels
        if len(shape) != 3 or shape[2] != channels:
            raise ShapeError(
                f"a condition of shape {shape}: {type(self.network).__name__} takes (batch, tokens, {channels}): "
                "use condition_tokens, with a mask where the ControlNet is one for inpainting and only there"
            )

    @property
    def is_timed(self) -> bool:
        """Whether it leaves out some steps."""
        return self.start > 0 or self.end < 1

    def acts_at(self, progress: float) -> bool:
        """Whether it changes anything at a step, given the part of the steps that is done: 0 at the first, 1 at the
        last."""
        return self.scale != 0 and self.start - _TOLERANCE <= progress <= self.end + _TOLERANCE

    def __str__(self) -> str:
        return f"scale {self.scale:g}, steps {self.start:g} to {self.end:g}, {self.condition.shape[1]} tokens"


def attach(target: Any, *controls: BlockwiseControl) -> Attachment:
    """Let ControlNets act on a Qwen-Image pipeline until they are detached, or until the end of a `with`.

    After each block of the transformer, every ControlNet sees the tokens of the picture that is being drawn; the sum of
    the residuals is added to them. Tokens of other pictures, as editing pipelines append them, stay as they are.

    Args:
        target: a diffusers pipeline of Qwen-Image, or its transformer; resident, or under a memory limit.
        controls: all that are to act; those of one call see the same stream.

    Raises:
        ComponentError: a ControlNet does not belong to the transformer, its blocks are compiled, or nobody knows the
            steps that a control is limited to.
        ShapeError: while the pipeline runs: a condition is not of the size of the picture.
    """
    transformer: torch.nn.Module = getattr(target, "transformer", target)
    scheduler = getattr(target, "scheduler", None)
    for control in controls:
        _require_fit(control.network, transformer)
        if control.is_timed and not hasattr(scheduler, "step_index"):
            raise ComponentError(
                f"a control for steps {control.start:g} to {control.end:g} on {type(target).__name__}, which has no "
                "scheduler that counts its steps: attach it to the pipeline, or leave start and end out"
            )
    return Attachment(transformer, controls, partial(_progress, scheduler))


class Attachment:
    """ControlNets at work on a transformer, until `detach` or the end of a `with`.

    Attributes:
        controls: what acts.
    """

    def __init__(
        self, transformer: torch.nn.Module, controls: tuple[BlockwiseControl, ...], progress: Callable[[], float]
    ) -> None:
        self.controls = controls
        self._progress = progress
        self._acting: list[tuple[BlockwiseControl, torch.Tensor]] = []
        self._handles = [transformer.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True)]
        for number, block in enumerate(_blocks(transformer)):
            self._handles.append(block.register_forward_hook(_Hook(partial(self._add, number))))

    def detach(self) -> None:
        """Leave the transformer as it was."""
        for handle in self._handles:
            handle.remove()
        self._acting = []

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __str__(self) -> str:
        return "\n".join(map(str, self.controls))

    def _begin(self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the transformer: project the conditions of the ControlNets that act in it."""
        given = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
        stream, shapes = given["hidden_states"], given["img_shapes"][0]
        drawn = prod(shapes if isinstance(shapes, tuple) else shapes[0])  # diffusers takes one shape, or one for each
        progress = self._progress()
        self._acting = []
        for control in self.controls:
            if control.acts_at(progress):
                _require_size(control.condition, len(stream), drawn)
                condition = control.condition.to(stream.device, stream.dtype)
                self._acting.append((control, control.network.img_in(condition)))

    def _add(self, number: int, _block: torch.nn.Module, _args: Any, output: Any) -> Any:
        """A block is done: its output with what the ControlNets add, or None to leave it."""
        if not self._acting:
            return None
        text, image = output
        tokens = self._acting[0][1].shape[1]
        drawn, others = image[:, :tokens], image[:, tokens:]
        first, *more = (
            control.network.controlnet_blocks[number](drawn, condition) * control.scale
            for control, condition in self._acting
        )
        drawn = drawn + sum(more, first)
        return text, torch.cat([drawn, others], dim=1) if others.shape[1] else drawn


class _Hook:
    """A hook of which copies of its module are free: a copy that is made to trace the transformer is to show what the
    transformer itself takes."""

    def __init__(self, act: Callable[..., Any] | None) -> None:
        self._act = act

    def __call__(self, *args: Any) -> Any:
        return None if self._act is None else self._act(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None)


def _blocks(transformer: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    return tuple(getattr(transformer, "transformer_blocks", ()))


def _require_fit(network: QwenImageBlockwiseControlNet, transformer: torch.nn.Module) -> None:
    name, blocks = type(transformer).__name__, _blocks(transformer)
    ours = len(network.controlnet_blocks), network.dim
    theirs = len(blocks), getattr(transformer, "inner_dim", None)
    if ours != theirs:
        raise ComponentError(
            f"the ControlNet has {ours[0]} blocks of width {ours[1]}, {name} has {theirs[0]} of width {theirs[1]}: "
            "load the ControlNet that was made for this transformer"
        )
    if any(part._compiled_call_impl is not None or "_orig_mod" in part._modules for part in (transformer, *blocks)):
        raise ComponentError(
            f"{name} is compiled, and what is compiled calls no hook that comes later: attach ControlNets to a "
            "transformer that is not compiled"
        )


def _require_size(condition: torch.Tensor, batch: int, tokens: int) -> None:
    if condition.shape[1] != tokens or condition.shape[0] not in (1, batch):
        raise ShapeError(
            f"a condition of {condition.shape[0]} x {condition.shape[1]} tokens for {batch} x {tokens} tokens of the "
            "picture that is being drawn: give condition_tokens the height and width that the pipeline draws"
        )


def _progress(scheduler: Any) -> float:
    """The part of the steps that is done: 0 at the first, 1 at the last; 0 without a scheduler."""
    if not hasattr(scheduler, "step_index"):
        return 0.0
    first = scheduler.begin_index or 0
    step: int = first if scheduler.step_index is None else scheduler.step_index
    return float((step - first) / max(len(scheduler.timesteps) - 1 - first, 1))
