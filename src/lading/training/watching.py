"""What a training run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of the optimizer.

    Attributes:
        step: its number, from 1.
        steps: of the whole run.
        loss: of its examples, on average.
        learning_rate: with which it was made.
        gradient_norm: of all gradients together, before clipping.
        seconds: it took.
        examples: that it saw.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    examples: int


class Watcher:
    """Told how a run goes; each method may be overridden."""

    def phase(self, title: str, total: int) -> None:
        """A phase of so many parts begins, such as the encoding of captions."""

    def advance(self) -> None:
        """A part of the phase is done."""

    def begin(self, step: int, steps: int) -> None:
        """Training begins, after so many steps that were made before."""

    def step(self, progress: Progress) -> None:
        """A step of the optimizer is done."""

    def tell(self, message: str) -> None:
        """Something that the person who trains should know."""
