"""The trace file is in the trace event format, as Perfetto reads it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.report.intervals import busy_seconds, merged, rows, subtract
from lading.report.run import Memory, Run, Series, Span
from lading.report.trace_file import LANES, trace_of, write_trace
from tests.report.conftest import LIMIT, Recorded

TIMES = st.floats(0, 100, allow_nan=False).map(lambda time: round(time, 6))
SPANS = st.lists(
    st.tuples(st.sampled_from(list(LANES)), TIMES, TIMES, st.integers(0, 10**9)).map(
        lambda drawn: Span(drawn[0], "name", "unet", min(drawn[1:3]), max(drawn[1:3]), drawn[3])
    ),
    max_size=40,
)


def run_of(spans: list[Span]) -> Run:
    memory = Memory((Series("unet", (0.0, 5.0), (1, 2)),), None, 10)
    return Run("Pipeline", {"prompt": "a"}, {}, 100.0, (), (), tuple(sorted(spans, key=lambda s: s.start)), memory)


def require_valid(trace: dict[str, Any]) -> dict[int, str]:
    """Check a trace against the format; return the names of its threads."""
    threads: dict[int, str] = {}
    by_thread = defaultdict(list)
    last = 0.0
    for event in trace["traceEvents"]:
        assert event["ph"] in ("M", "X", "C")
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                assert event["tid"] not in threads
                threads[event["tid"]] = event["args"]["name"]
            continue
        assert event["ts"] >= last, "events are in the order of time"
        last = event["ts"]
        if event["ph"] == "C":
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
        else:
            assert event["dur"] >= 0
            by_thread[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(by_thread) == set(threads), "each thread has a name, and each name a thread"
    for spans in by_thread.values():
        for (_, end), (start, _) in pairwise(spans):
            assert start >= end - 1e-3, "spans of a thread do not cross"
    return threads


def test_a_real_run_is_a_valid_trace_with_all_its_lanes(limited: Recorded, tmp_path: Path) -> None:
    write_trace(limited.run, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    threads = require_valid(trace)
    assert {"calls", "loading", "compute", "waits", "disk reads", "tracing"} <= set(threads.values())
    counters = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert {"weights: unet", "weights: vae", "memory, measured", "memory limit"} <= counters
    limits = [event["args"] for event in trace["traceEvents"] if event["name"] == "memory limit"]
    assert limits == [{"bytes": LIMIT}] * 2
    read = sum(e["args"]["bytes"] for e in trace["traceEvents"] if e["ph"] == "X" and e["cat"] == "read")
    assert read == sum(span.nbytes for span in limited.run.lane("read"))
    assert trace["otherData"]["seed"] == "7"
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]


@given(SPANS)
def test_whatever_happens_at_once_the_trace_is_valid(spans: list[Span]) -> None:
    trace = json.loads(json.dumps(trace_of(run_of(spans))))
    require_valid(trace)
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == len(spans)


@given(SPANS)
def test_rows_hold_every_span_once_and_as_few_as_lie_over_each_other(spans: list[Span]) -> None:
    found = rows(spans)
    assert sorted(map(id, (span for row in found for span in row))) == sorted(map(id, spans))
    deepest = max((sum(o.start <= s.start < o.end for o in spans) for s in spans if s.end > s.start), default=0)
    assert len(found) <= max(deepest, 1) + sum(span.end == span.start for span in spans)


@given(SPANS, st.tuples(TIMES, TIMES))
def test_what_is_left_and_what_is_taken_add_up(spans: list[Span], stretch: tuple[float, float]) -> None:
    start, end = min(stretch), max(stretch)
    left = subtract((start, end), sorted((span.start, span.end) for span in spans))
    taken = [
        Span("read", "", "", max(span.start, start), min(span.end, end))
        for span in spans
        if span.end > start and span.start < end
    ]
    assert sum(last - first for first, last in left) + busy_seconds(taken) == pytest.approx(end - start, abs=1e-6)


@given(SPANS, st.floats(0, 50))
def test_joined_neighbours_move_as_many_bytes(spans: list[Span], resolution: float) -> None:
    spans = sorted(spans, key=lambda span: span.start)
    joined = merged(spans, resolution)
    assert sum(span.nbytes for span in joined) == sum(span.nbytes for span in spans)
    assert len(joined) <= len(spans)
