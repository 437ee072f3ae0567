"""Stretches of time: what is left of one, how long several last together, and which can share a row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lading.report.run import Span

Interval: TypeAlias = "tuple[float, float]"


def subtract(interval: Interval, others: Iterable[Interval]) -> list[Interval]:
    """Return what is left of an interval without others, which are sorted.

    >>> subtract((0.0, 10.0), [(1.0, 2.0), (1.5, 4.0), (9.0, 12.0)])
    [(0.0, 1.0), (4.0, 9.0)]
    """
    start, end = interval
    left = []
    for first, last in others:
        if last <= start or first >= end:
            continue
        if first > start:
            left.append((start, first))
        start = max(start, last)
    return [*left, (start, end)] if start < end else left


def busy_seconds(spans: Iterable[Span]) -> float:
    """Return how long at least one of them lasted."""
    seconds, until = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span.start):
        seconds += max(span.end - max(span.start, until), 0.0)
        until = max(until, span.end)
    return seconds


def rows(spans: Iterable[Span]) -> list[list[Span]]:
    """Put spans into as few rows as hold them without overlap, in the order of their start."""
    found: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        row = next((row for row in found if row[-1].end <= span.start), None)
        if row is None:
            found.append(row := [])
        row.append(span)
    return found


def merged(spans: Sequence[Span], resolution: float) -> list[Span]:
    """Join neighbours of one part that are closer than can be told apart in a picture; their bytes add up."""
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is not None and last.part == span.part and span.start - last.end < resolution:
            name = last.name if last.name == span.name else f"{last.name} ..."
            name = name if not last.name.endswith(" ...") else last.name
            nbytes = last.nbytes + span.nbytes
            found[-1] = Span(last.lane, name, last.part, last.start, max(last.end, span.end), nbytes)
        else:
            found.append(span)
    return found
