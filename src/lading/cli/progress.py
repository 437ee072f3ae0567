"""Progress bars: on a terminal only, on stderr, gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lading.hub.repository import RemoteFile
from lading.hub.transfers import Job, Watcher
from lading.training.watching import Progress as TrainingStep
from lading.training.watching import Watcher as TrainingWatcher

_BarsT = TypeVar("_BarsT", bound="_Bars")


class _Bars:
    """Bars that show while the context lasts."""

    def __init__(self, quiet: bool, *columns: ProgressColumn) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            console=self._console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __enter__(self: _BarsT) -> _BarsT:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Steps(_Bars):
    """A bar over numbered steps."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        super().__init__(quiet, MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._progress.add_task(title, total=None)

    def advance(self, step: int, total: int) -> None:
        """Show that `step` of `total` steps are done."""
        self._progress.update(self._task, completed=step, total=total)


class Transfers(_Bars, Watcher):
    """One bar for each file that is being fetched, and one for all of them: bytes, rate and time left."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bars: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def start(self, jobs: Sequence[Job]) -> None:
        there = sum(job.file.nbytes - job.missing for job in jobs)
        self._total = self._progress.add_task(
            f"{len(jobs)} files", total=sum(job.file.nbytes for job in jobs), completed=there
        )
        for job in jobs:
            self._bars[job.file.name] = self._progress.add_task(
                job.file.name, total=job.file.nbytes, completed=job.file.nbytes - job.missing, visible=False
            )

    def advance(self, file: RemoteFile, nbytes: int) -> None:
        self._progress.update(self._bars[file.name], advance=nbytes, visible=True)
        if self._total is not None:
            self._progress.update(self._total, advance=nbytes)

    def verify(self, file: RemoteFile) -> None:
        self._progress.update(self._bars[file.name], description=f"{file.name}: verifying")

    def finish(self, file: RemoteFile) -> None:
        self._progress.update(self._bars[file.name], visible=False)


class TrainingProgress(_Bars, TrainingWatcher):
    """A bar over the phase that runs, and in training the loss, the learning rate and the examples in a second."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet, MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
        self._quiet = quiet
        self._task: TaskID | None = None

    def phase(self, title: str, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, visible=False)
        self._task = self._progress.add_task(title, total=total, figures="")

    def advance(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)

    def begin(self, step: int, steps: int) -> None:
        self.phase("training", steps)
        if self._task is not None:
            self._progress.update(self._task, completed=step)

    def step(self, progress: TrainingStep) -> None:
        rate = progress.examples / progress.seconds
        figures = f"loss {progress.loss:.4f}  rate {progress.learning_rate:.2e}  {rate:.1f} examples/s"
        if self._task is not None:
            self._progress.update(self._task, completed=progress.step, figures=figures)

    def tell(self, message: str) -> None:
        if not self._quiet:
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)
