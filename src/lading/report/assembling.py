"""From what was seen to what happened: one `Run`, in seconds since the recording began."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lading.events import Event, Moment, seconds_of
from lading.latents import LatentFormat
from lading.loading.components import weights_of
from lading.loading.plans import Plan
from lading.report.comparing import compared, predictions
from lading.report.intervals import subtract
from lading.report.run import Call, Lane, Memory, Part, Run, Series, Span, Step
from lading.report.sampling import Sampler
from lading.report.subject import Subject, class_of
from lading.report.tensors import PIPELINE, is_denoiser, named_axes
from lading.report.watching import Seen, Watcher

_LANES: Mapping[str, Lane] = {"load": "load", "read": "read", "copy": "copy", "wait": "wait", "trace": "plan"}
_BESIDE = 64 << 20
"""What Python and the libraries may take, above all when something happens for the first time."""


def assemble(
    subject: Subject | None,
    events: Sequence[Event],
    watcher: Watcher,
    sampler: Sampler | None,
    notes: Mapping[str, Any],
    plan: Plan | None,
    began: float,
    ended: float,
) -> Run:
    """Put together what was seen of a subject, from a time to another of `time.perf_counter`."""
    clock = _Clock(began)
    title = "nothing" if subject is None else subject.title
    parts = () if subject is None else _parts(subject, events)
    calls = _with_steps(_calls(watcher.seen, clock, None if subject is None else subject.latents()))
    spans = _spans(subject, events, clock)
    spans += _computing(calls, spans)
    memory = Memory((), None, None) if subject is None else _memory(subject, events, sampler, clock, ended - began)
    return Run(
        title,
        dict(notes),
        _machine(subject),
        ended - began,
        parts,
        calls,
        tuple(sorted(spans, key=lambda span: (span.start, -span.end))),
        memory,
        () if subject is None else compared(predictions(subject, plan), subject, calls, spans, memory),
        watcher.picture,
        _steps(calls, spans),
    )


class _Clock:
    """Tells moments in seconds since the recording began."""

    def __init__(self, began: float) -> None:
        self._began = began

    def __call__(self, moment: Moment) -> float:
        return max(seconds_of(moment) - self._began, 0.0)


def _parts(subject: Subject, events: Iterable[Event]) -> tuple[Part, ...]:
    ways: dict[str, dict[str, None]] = {}
    part_of = subject.finder()
    for event in events:
        if event.kind == "open" and (part := part_of(event.owner)) is not None:
            ways.setdefault(part, {})[event.name] = None
    found = []
    for name in dict.fromkeys((*subject.records, *subject.components)):
        component, record = subject.components.get(name), subject.records.get(name)
        if component is None or isinstance(component, (bool, int, float, str)):
            continue  # a setting of the pipeline, no component
        tensors, nbytes, dtype, device = weights_of(component)
        found.append(
            Part(
                name,
                "" if record is None else record.loader,
                class_of(component) if record is None else record.model_class,
                () if record is None else record.files,
                tuple(ways.get(name, ())),
                tensors,
                nbytes,
                dtype,
                device,
                None if record is None else record.milliseconds / 1000,
            )
        )
    return tuple(found)


def _calls(seen: Iterable[Seen], clock: _Clock, latents: LatentFormat | None) -> list[Call]:
    calls = []
    for one in seen:
        given, made = (
            tuple(named_axes(one.part, tensor, latents) for tensor in passed) for passed in (one.given, one.made)
        )
        calls.append(Call(one.part, one.entry, clock(one.start), clock(one.end), given, made, None, _time(one.time)))
    return sorted(calls, key=lambda call: call.start)


def _time(given: torch.Tensor | float | None) -> float | None:
    if isinstance(given, torch.Tensor):
        return float(given.flatten()[0]) if given.numel() else None
    return given


def _with_steps(calls: Sequence[Call]) -> tuple[Call, ...]:
    """Number the steps: forwards of denoisers that are told the same time, one after another, are one step."""
    numbered, step, before = [], 0, None
    for call in calls:
        if call.part == PIPELINE:
            before = None
        elif is_denoiser(call.part):
            if before is None or call.timestep is None or before.timestep != call.timestep:
                step += 1
            before, call = call, replace(call, step=step)
        numbered.append(call)
    return tuple(numbered)


def _steps(calls: Iterable[Call], spans: Iterable[Span]) -> tuple[Step, ...]:
    groups: dict[int, list[Call]] = {}
    for call in calls:
        if call.step is not None:
            groups.setdefault(call.step, []).append(call)
    waits = [span for span in spans if span.lane == "wait"]
    reads = [span for span in spans if span.lane == "read"]
    steps = []
    for number, group in groups.items():
        start = group[0].start
        following = groups.get(number + 1)
        end = group[-1].end if following is None else following[0].start
        waited = sum(min(span.end, end) - max(span.start, start) for span in _within(waits, start, end))
        read = sum(span.nbytes for span in reads if start <= span.start < end)
        latent = next((tensor for tensor in group[0].given if {"channels", "tokens"} & set(tensor.axes)), None)
        steps.append(Step(number, group[0].timestep, start, end, len(group), waited, read, latent))
    return tuple(steps)


def _within(spans: Iterable[Span], start: float, end: float) -> Iterable[Span]:
    return (span for span in spans if span.start < end and span.end > start)


def _spans(subject: Subject | None, events: Iterable[Event], clock: _Clock) -> list[Span]:
    """What happened to the subject; what other pipelines did at the same time is left out."""
    part_of = (lambda _: None) if subject is None else subject.finder()
    spans = []
    for event in events:
        if event.kind not in _LANES:
            continue
        part = part_of(event.owner)
        if subject is None or part is not None:
            start, end = clock(event.start), clock(event.end)
            spans.append(Span(_LANES[event.kind], event.name, part or "", start, max(start, end), event.nbytes))
    return spans


def _computing(calls: Iterable[Call], spans: Iterable[Span]) -> list[Span]:
    """The calls without what they stood still for."""
    still = sorted((span.start, span.end) for span in spans if span.lane in ("wait", "plan"))
    return [
        Span("compute", call.label, call.part, *piece)
        for call in calls
        if call.part != PIPELINE
        for piece in subtract((call.start, call.end), still)
    ]


def _memory(
    subject: Subject, events: Iterable[Event], sampler: Sampler | None, clock: _Clock, seconds: float
) -> Memory:
    part_of = subject.finder()
    changes: dict[str, list[tuple[float, int]]] = {name: [(0.0, nbytes)] for name, nbytes in subject.held.items()}
    for event in events:
        if event.kind == "held" and (part := part_of(event.owner)) is not None:
            changes[part].append((clock(event.start), event.nbytes))
    weights = []
    for name, series in changes.items():
        series.append((seconds, series[-1][1]))
        times, values = zip(*series, strict=True)
        if max(values):
            weights.append(Series(name, times, values))
    measured = None
    if sampler is not None:
        apart = 0 if subject.device != "cpu" else sum(subject.held.values()) - sampler.values[0]
        measured = Series(
            "measured",
            tuple(clock(time) for time in sampler.times),
            tuple(max(value + apart, 0) for value in sampler.values),
        )
    return Memory(tuple(weights), measured, subject.limit, _BESIDE if subject.device == "cpu" else 0)


def _machine(subject: Subject | None) -> dict[str, str]:
    import diffusers

    device = "cpu" if subject is None else subject.device
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
