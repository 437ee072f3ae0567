"""A run in the trace event format of Chrome, which https://ui.perfetto.dev opens.

Source: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Each lane
is a thread with a name, or several where things happened side by side; memory is counters. Times are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lading.report.intervals import rows
from lading.report.run import Lane, Run, Series, Span
from lading.writing import require_folder, whole_file

LANES: dict[Lane, str] = {
    "load": "loading",
    "plan": "tracing",
    "compute": "compute",
    "wait": "waits",
    "copy": "host-to-device copies",
    "read": "disk reads",
}
"""What each lane is called, in the order in which they are shown."""

_PROCESS = 1


def write_trace(run: Run, path: Path) -> None:
    """Write a run's trace; the file appears whole or not at all.

    Raises:
        LadingError: there is no such folder.
    """
    require_folder(path, "trace.json")
    with whole_file(path) as part:
        part.write_text(json.dumps(trace_of(run)))


def trace_of(run: Run) -> dict[str, Any]:
    """Return a run's trace as JSON: events in the order of time, after the names of the threads."""
    named: list[dict[str, Any]] = [_meta("process_name", 0, {"name": f"lading: {run.title}"})]
    timed: list[dict[str, Any]] = []
    thread = 0
    for lane, spans in _lanes(run).items():
        for number, row in enumerate(rows(spans), 1):
            thread += 1
            name = lane if number == 1 else f"{lane} {number}"
            named += [
                _meta("thread_name", thread, {"name": name}),
                _meta("thread_sort_index", thread, {"sort_index": thread}),
            ]
            timed += [_complete(span, thread) for span in row]
    timed += _counters(run)
    timed.sort(key=lambda event: event["ts"])
    facts = {"title": run.title, **run.machine, **{key: str(value) for key, value in run.notes.items()}}
    return {"traceEvents": [*named, *timed], "displayTimeUnit": "ms", "otherData": facts}


def _lanes(run: Run) -> dict[str, list[Span]]:
    lanes = {"calls": [Span("compute", call.label, call.part, call.start, call.end) for call in run.calls]}
    return lanes | {name: run.lane(lane) for lane, name in LANES.items()}


def _complete(span: Span, thread: int) -> dict[str, Any]:
    start, end = _microseconds(span.start), _microseconds(span.end)
    args: dict[str, Any] = {"part": span.part}
    if span.nbytes:
        args["bytes"] = span.nbytes
    event = {"ph": "X", "pid": _PROCESS, "tid": thread, "ts": start, "dur": round(end - start, 3)}
    return {**event, "name": span.name or span.part, "cat": span.lane, "args": args}


def _counters(run: Run) -> Iterator[dict[str, Any]]:
    memory = run.memory
    for series in memory.weights:
        yield from _counter(f"weights: {series.name}", series)
    if memory.measured is not None:
        yield from _counter("memory, measured", memory.measured)
    if memory.limit is not None:
        yield from _counter("memory limit", Series("limit", (0.0, run.seconds), (memory.limit, memory.limit)))


def _counter(name: str, series: Series) -> Iterator[dict[str, Any]]:
    for time, value in zip(series.times, series.values, strict=True):
        yield {"ph": "C", "pid": _PROCESS, "tid": 0, "ts": _microseconds(time), "name": name, "args": {"bytes": value}}


def _meta(name: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": thread, "ts": 0, "name": name, "args": args}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
