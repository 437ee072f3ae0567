"""What a run leaves to read: lines of JSON, and TensorBoard's events where that is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lading.errors import LadingError
from lading.training.watching import Progress, Watcher


class Watchers(Watcher):
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = tuple(watchers)

    def phase(self, title: str, total: int) -> None:
        for watcher in self._watchers:
            watcher.phase(title, total)

    def advance(self) -> None:
        for watcher in self._watchers:
            watcher.advance()

    def begin(self, step: int, steps: int) -> None:
        for watcher in self._watchers:
            watcher.begin(step, steps)

    def step(self, progress: Progress) -> None:
        for watcher in self._watchers:
            watcher.step(progress)

    def tell(self, message: str) -> None:
        for watcher in self._watchers:
            watcher.tell(message)


class StepLog(Watcher):
    """One line of JSON for each step. What was written after the checkpoint that a run goes on from is written anew."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self, step: int, steps: int) -> None:
        lines = self._file.read_text().splitlines() if step and self._file.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        self._file.write_text("".join(f"{line}\n" for line in kept))

    def step(self, progress: Progress) -> None:
        with self._file.open("a") as stream:
            stream.write(json.dumps(asdict(progress)) + "\n")


class TensorBoard(Watcher):
    """Loss, rate and gradient norm as TensorBoard's events.

    Raises:
        LadingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise LadingError("logs for TensorBoard need it: pip install 'lading[train]'") from None
        self._folder = folder
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, step: int, steps: int) -> None:
        self._writer = self._make(str(self._folder), purge_step=step or None)

    def step(self, progress: Progress) -> None:
        for name in ("loss", "learning_rate", "gradient_norm", "seconds"):
            self._writer.add_scalar(f"train/{name}", getattr(progress, name), progress.step)
        if progress.step == progress.steps:
            self._writer.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that was cut off when the process was killed
        return float("inf")
