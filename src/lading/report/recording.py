"""`record`: what a pipeline does in a block, seen from outside; what it computes stays equal, bit for bit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lading import events
from lading.errors import LadingError
from lading.events import Event
from lading.loading.generation import Request
from lading.loading.plans import Plan
from lading.report.assembling import assemble
from lading.report.page import check_report, write_page
from lading.report.run import Run
from lading.report.sampling import Sampler, measure_of
from lading.report.subject import Subject
from lading.report.trace_file import write_trace
from lading.report.watching import Watcher
from lading.writing import require_folder

_log = logging.getLogger(__name__)


class Recording:
    """What was recorded, and what can be made of it; see `record`.

    Attributes:
        notes: what the report says of the run beside what was seen: any names and values.
        plan: what was predicted; None for what each managed module's own plan says.
    """

    def __init__(self, notes: Mapping[str, Any], plan: Plan | None = None) -> None:
        self.notes = dict(notes)
        self.plan = plan
        self._began = time.perf_counter()
        self._events: list[Event] = []
        self._watcher = Watcher()
        self._subject: Subject | None = None
        self._sampler: Sampler | None = None
        self._stack = ExitStack()
        self._run: Run | None = None

    def add(self, event: Event) -> None:
        """Note an event; see `lading.events.Recorder`."""
        self._events.append(event)

    def watch(self, pipeline: Any) -> None:
        """Watch the parts of a pipeline, or a module, from now on; one for each recording.

        Raises:
            LadingError: it has no modules, or something is watched already.
        """
        if self._subject is not None:
            raise LadingError(f"{self._subject.title} is recorded already: record one pipeline at a time")
        subject = self._subject = Subject(pipeline)
        measure = measure_of(subject.device)
        if measure is not None:
            self._sampler = Sampler(measure)
        self._stack.enter_context(self._watcher.watching(pipeline, subject.modules))

    @property
    def run(self) -> Run:
        """What happened, as data.

        Raises:
            LadingError: the recording is not over.
        """
        if self._run is None:
            raise LadingError("the recording is not over: leave its `with` block first")
        return self._run

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML page that needs nothing beside it; it appears whole or not at all.

        Raises:
            LadingError: the extra `report` is not installed, or the file cannot be written.
        """
        write_page(self.run, Path(path))

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that https://ui.perfetto.dev opens, and chrome://tracing; whole or not at all.

        Raises:
            LadingError: the file cannot be written.
        """
        write_trace(self.run, Path(path))

    def end(self) -> None:
        """End the recording: nothing is watched any more, and nothing of the pipeline is kept."""
        if self._run is not None:
            return
        self._stack.close()
        ended = time.perf_counter()
        if self._sampler is not None:
            self._sampler.stop()
        self._run = assemble(
            self._subject, self._events, self._watcher, self._sampler, self.notes, self.plan, self._began, ended
        )
        self._events, self._subject = [], None

    def __str__(self) -> str:
        return "recording" if self._run is None else str(self._run)


@contextmanager
def record(pipeline: Any = None, plan: Plan | None = None, **notes: Any) -> Iterator[Recording]:
    """Record what happens in a block: loads, calls, reads, copies, waits, memory, and the shape of every tensor that
    passes from one part to the next.

    What is computed stays equal, bit for bit, and nothing is waited for.

    Args:
        pipeline: a diffusers pipeline, or a module, to watch; None where it is loaded in the block, to be watched with
            `recording.watch(pipeline)` then.
        plan: what was predicted, to stand beside what is measured; None for what the plans of modules under a limit
            say.
        notes: what the report shall say of the run, such as `prompt="..."`.

    Raises:
        LadingError: the pipeline has no modules.

    >>> import lading
    >>> pipeline = lading.load_pipeline("shapes")
    >>> pipeline.set_progress_bar_config(disable=True)
    >>> with lading.record(pipeline) as recording:
    ...     _ = pipeline("a red circle on a white background", num_inference_steps=2)
    >>> len(recording.run.steps), recording.run.steps[0].latent.extent
    (2, 'batch 2  channels 4  height 8  width 8')
    """
    recording = Recording(notes, plan)
    with events.told_to(recording):
        try:
            if pipeline is not None:
                recording.watch(pipeline)
            yield recording
        finally:
            recording.end()


@contextmanager
def recorded_to(
    report: Path | None, trace: Path | None, folder: Path, request: Request, **options: Any
) -> Iterator[Callable[[Any], None]]:
    """Record how a request is drawn in a block, and write a report, a trace, or both when it has ended well.

    Where neither is wanted, nothing is recorded. What is drawn is planned before, so that what was predicted stands
    beside what is measured.

    Args:
        folder: of the pipeline.
        options: of `load_pipeline`.

    Yields:
        What to call with the pipeline, once it is there.

    Raises:
        LadingError: they could not be written in the end; nothing has happened yet.
    """
    if report is None and trace is None:
        yield lambda _: None
        return
    if report is not None:
        check_report(report)
    if trace is not None:
        require_folder(trace, "trace.json")
    plan = _predicted(folder, request, options)
    with record(None, plan, model=folder.name, **request.asked()) as recording:
        yield recording.watch
    if report is not None:
        recording.save_report(report)
    if trace is not None:
        recording.save_trace(trace)


def _predicted(folder: Path, request: Request, options: Mapping[str, Any]) -> Plan | None:
    """Return the plan of a request; None where it cannot be planned, which is no reason not to draw."""
    from lading.loading.planning import plan

    asked: dict[str, Any] = {
        "height": request.height,
        "width": request.width,
        "num_frames": request.num_frames,
        "steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
    }
    try:
        return plan(folder, **asked, **options, require_fit=False)
    except LadingError as error:
        _log.info("%s: not planned: %s", folder, error)
        return None
