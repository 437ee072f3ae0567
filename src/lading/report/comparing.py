"""What was predicted of a run, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lading.loading.plans import Plan
from lading.memory.management import Manager
from lading.report.intervals import subtract
from lading.report.run import CALL_TIME, FIRST_TIME, PEAK, STREAMED, Call, Comparison, Memory, Span
from lading.report.subject import Subject

_SETTLED = 2
"""Calls of a module before its plan stands: the first two are measured."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of the calls of one part.

    Attributes:
        part: of the pipeline.
        entry: the method that is called; None for whichever it is.
        peak_bytes: the most that is taken at a time.
        streamed_bytes: at each call.
        call_seconds: of each call after the first.
        first_seconds: of the first, with the read of what stays; None where nothing says it.
    """

    part: str
    entry: str | None
    peak_bytes: int
    streamed_bytes: int
    call_seconds: float
    first_seconds: float | None = None


def predictions(subject: Subject, plan: Plan | None) -> list[Prediction]:
    """Return what a plan says, or, without one, what those of the managed modules say."""
    if plan is not None:
        return [
            Prediction(
                phase.component,
                phase.entry,
                phase.peak_bytes,
                phase.streamed_bytes,
                phase.call_seconds,
                phase.first_seconds,
            )
            for phase in plan.phases
        ]
    return [
        Prediction(
            name,
            None,
            manager.plan.peak_bytes,
            manager.plan.placement.streamed_bytes,
            manager.plan.placement.seconds,
        )
        for name, manager in subject.managers.items()
    ]


def compared(
    found: Sequence[Prediction], subject: Subject, calls: Sequence[Call], spans: Sequence[Span], memory: Memory
) -> tuple[Comparison, ...]:
    """Put what was measured beside each prediction; parts that were not called are left out."""
    tracing = sorted((span.start, span.end) for span in spans if span.lane == "plan")
    comparisons: list[Comparison] = []
    for prediction in found:
        own = [
            call
            for call in calls
            if call.part == prediction.part and prediction.entry in (None, call.entry) and call.made
        ]
        if own:
            comparisons += _of_part(prediction, own, tracing, memory)
            manager = subject.managers.get(prediction.part)
            if manager is not None:
                comparisons += _streamed(prediction, manager, subject.calls[prediction.part])
    return tuple(comparisons)


def _of_part(
    prediction: Prediction, calls: Sequence[Call], tracing: Sequence[tuple[float, float]], memory: Memory
) -> Iterator[Comparison]:
    part = prediction.part
    yield Comparison(part, PEAK, "B", prediction.peak_bytes, _peak(memory, calls))
    alike = [call for call in calls if call.entry == calls[-1].entry]
    seconds = [sum(end - start for start, end in subtract((call.start, call.end), tracing)) for call in alike]
    if prediction.first_seconds is not None:
        yield Comparison(part, FIRST_TIME, "s", prediction.first_seconds, seconds[0])
    settled = seconds[_SETTLED:] or seconds[1:]
    if settled:
        yield Comparison(part, CALL_TIME, "s", prediction.call_seconds, median(settled))


def _streamed(prediction: Prediction, manager: Manager, before: int) -> Iterator[Comparison]:
    """What came to the slots in a call after the first, as the engine counted it."""
    recent = list(manager.stats().recent)[-(manager.stats().calls - before) :]
    recent = [call for call in recent if call.entry == recent[-1].entry]
    settled = recent[_SETTLED:] or recent[1:]
    if settled:
        moved = [call.read_bytes if manager.device.type == "cpu" else call.copied_bytes for call in settled]
        yield Comparison(prediction.part, STREAMED, "B", prediction.streamed_bytes, median(moved))


def _peak(memory: Memory, calls: Sequence[Call]) -> int | None:
    """The most memory that was measured while a part was called."""
    if memory.measured is None:
        return None
    pairs: Mapping[float, int] = dict(zip(memory.measured.times, memory.measured.values, strict=True))
    within = [value for time, value in pairs.items() if any(call.start <= time <= call.end for call in calls)]
    return max(within, default=None)
