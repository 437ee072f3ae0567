"""A run in charts: memory, lanes and steps, as figures of plotly. Colours of text and grid are the page's."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lading.report.intervals import merged
from lading.report.run import CALL_TIME, PEAK, Comparison, Run, Series, Span
from lading.report.trace_file import LANES
from lading.sizes import format_seconds, format_size

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#d6a91e", "#9d755d")
"""Told apart on light and on dark ground, and by most who see few colours."""

_WAIT = "#e45756"
_NOTHING = "#8a939b"
_TIME = "seconds since the recording began"
_MOST_POINTS = 1500
_MOST_BARS = 600
_LONGEST = 48

Figure = Mapping[str, Any]


def figures(run: Run) -> dict[str, Figure]:
    """Return the charts that there is something to show in: by the name of their place in the page."""
    found = {"memory": memory_figure(run), "lanes": lanes_figure(run), "steps": steps_figure(run)}
    return {name: json.loads(figure.to_json()) for name, figure in found.items() if figure is not None}


def memory_figure(run: Run) -> Any:
    """What each part's weights take, stacked, below what was measured of all and the limit."""
    import plotly.graph_objects as go

    memory = run.memory
    series = [*memory.weights, *([memory.measured] if memory.measured is not None else [])]
    top = max((one.peak for one in series), default=0)
    if not top:
        return None
    factor, unit = _unit(max(top, memory.limit or 0))
    times = _thinned(sorted({time for one in memory.weights for time in one.times}))
    figure = go.Figure(layout=_layout(_TIME, f"memory ({unit})"))
    for number, one in enumerate(memory.weights):
        values = [value / factor for value in _sampled(one, times)]
        figure.add_scatter(
            x=times,
            y=values,
            name=f"weights of {_label(one.name)}",
            mode="lines",
            line={"width": 0.5, "color": _colour(number), "shape": "hv"},
            stackgroup="weights",
            hovertemplate=f"%{{y:.3~r}} {unit}<extra>weights of {_label(one.name)}</extra>",
        )
    if memory.measured is not None:
        points = _thinned(memory.measured.times)
        figure.add_scatter(
            x=points,
            y=[value / factor for value in _peaks(memory.measured, points)],
            name="measured, of all",
            mode="lines",
            line={"width": 2, "color": _NOTHING},
            hovertemplate=f"%{{y:.3~r}} {unit}<extra>measured, of all</extra>",
        )
    planned = [(one.part, one.predicted) for one in run.comparisons if one.quantity == PEAK]
    if planned:
        spans = [(part, nbytes, [call for call in run.calls if call.part == part]) for part, nbytes in planned]
        figure.add_scatter(
            x=[time for _, _, calls in spans for time in (calls[0].start, calls[-1].end, None)],
            y=[value for _, nbytes, _ in spans for value in (nbytes / factor, nbytes / factor, None)],
            name="planned peak",
            mode="lines",
            line={"width": 2, "color": PALETTE[5], "dash": "dot"},
            hovertemplate=f"%{{y:.3~r}} {unit}<extra>planned peak</extra>",
        )
    if memory.limit is not None:
        figure.add_scatter(
            x=[0, run.seconds],
            y=[memory.limit / factor] * 2,
            name=f"limit {format_size(memory.limit)}",
            mode="lines",
            line={"width": 2, "color": _WAIT, "dash": "dash"},
            hovertemplate=f"{format_size(memory.limit)}<extra>limit</extra>",
        )
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(range=[0, run.seconds])
    figure.update_yaxes(rangemode="tozero")
    return figure


def lanes_figure(run: Run) -> Any:
    """What was loaded, computed, waited for, copied and read, and when; one colour for each part."""
    import plotly.graph_objects as go

    if not run.spans:
        return None
    names = list(dict.fromkeys([*(part.name for part in run.parts), *(span.part for span in run.spans)]))
    bars: dict[str, list[tuple[str, Span]]] = {}
    for lane, label in LANES.items():
        for span in merged(run.lane(lane), run.seconds / _MOST_BARS):
            bars.setdefault(span.part, []).append((label, span))
    figure = go.Figure(layout=_layout(_TIME, ""))
    for part in sorted(bars, key=names.index):
        labels, spans = zip(*bars[part], strict=True)
        colour = _colour(_number(run, part)) if part else _NOTHING
        figure.add_bar(
            orientation="h",
            base=[span.start for span in spans],
            x=[span.end - span.start for span in spans],
            y=labels,
            name=_label(part) or "others",
            marker={"color": colour, "line": {"width": 0.5, "color": colour}},
            width=0.7,
            hovertext=[_told(span) for span in spans],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    shown = [label for lane, label in LANES.items() if any(lane == span.lane for span in run.spans)]
    figure.update_layout(barmode="overlay", hovermode="closest", height=120 + 46 * len(shown))
    figure.update_xaxes(range=[0, run.seconds])
    figure.update_yaxes(categoryorder="array", categoryarray=shown[::-1], ticks="")
    return figure


def steps_figure(run: Run) -> Any:
    """How long each step took, with what it waited; beside what was predicted."""
    import plotly.graph_objects as go

    if not run.steps:
        return None
    slowest = max(step.seconds for step in run.steps)
    factor, unit = (1.0, "s") if slowest >= 1 else (1e-3, "ms")
    figure = go.Figure(layout=_layout("step", f"time of a step ({unit})"))
    numbers = [step.number for step in run.steps]
    for name, colour, seconds in (
        ("computing", PALETTE[0], [max(step.seconds - step.waited, 0.0) for step in run.steps]),
        ("waiting for weights", _WAIT, [step.waited for step in run.steps]),
    ):
        figure.add_bar(
            x=numbers,
            y=[value / factor for value in seconds],
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{y:.3~r}} {unit}<extra>{name}</extra>",
        )
    predicted = predicted_step(run)
    if predicted is not None:
        figure.add_scatter(
            x=[0.5, len(run.steps) + 0.5],
            y=[predicted / factor] * 2,
            name=f"predicted {format_seconds(predicted)}",
            mode="lines",
            line={"width": 2, "color": _NOTHING, "dash": "dash"},
            hovertemplate=f"{format_seconds(predicted)}<extra>predicted</extra>",
        )
    figure.update_layout(barmode="stack", hovermode="x unified")
    figure.update_xaxes(range=[0.5, len(run.steps) + 0.5], tickformat="d", nticks=min(len(numbers) + 1, 12))
    return figure


def predicted_step(run: Run) -> float | None:
    """Return the seconds that were predicted for a step after the first; None without a prediction."""
    parts = {call.part for call in run.calls if call.step is not None}
    forwards = max((step.forwards for step in run.steps), default=0)
    seconds = [one.predicted for one in run.comparisons if _is_time(one) and one.part in parts]
    return forwards * max(seconds) if seconds else None


def _is_time(comparison: Comparison) -> bool:
    return comparison.quantity == CALL_TIME


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    return {
        "template": "none",
        "height": 380,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
        "xaxis": {"title": {"text": x_title}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "automargin": True, "zeroline": False},
        "bargap": 0.15,
    }


def _told(span: Span) -> str:
    """What the tooltip of a span says; names are not trusted."""
    lines = [f"<b>{_label(span.name or span.part)}</b>"]
    if span.part and span.part != span.name:
        lines.append(_label(span.part))
    lines.append(f"{format_seconds(span.end - span.start)} from {format_seconds(span.start)} on")
    if span.nbytes and span.end > span.start:
        rate = "" if span.lane == "wait" else f", {format_size(round(span.nbytes / (span.end - span.start)))}/s"
        lines.append(f"{format_size(span.nbytes)}{rate}")
    return "<br>".join(lines)


def _label(name: str) -> str:
    """A name for plotly, which reads some HTML: short, and with nothing to read in it."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]} ... {name[-_LONGEST // 2 :]}"
    return escape(short, quote=False)


def _number(run: Run, part: str) -> int:
    weights = [series.name for series in run.memory.weights]
    others = [one.name for one in run.parts if one.name not in weights]
    order = [*weights, *others]
    return order.index(part) if part in order else len(order)


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _unit(nbytes: int) -> tuple[float, str]:
    return next(((factor, unit) for factor, unit in ((1e9, "GB"), (1e6, "MB")) if nbytes >= factor), (1e3, "kB"))


def _thinned(times: Sequence[float]) -> list[float]:
    step = -(-len(times) // _MOST_POINTS) or 1
    return [*times[::step], *times[-1:]]


def _sampled(series: Series, times: Sequence[float]) -> list[int]:
    """The value that holds at each time."""
    return [series.values[max(bisect_right(series.times, time) - 1, 0)] for time in times]


def _peaks(series: Series, times: Sequence[float]) -> list[int]:
    """The largest value from each time to the next."""
    starts = [max(bisect_right(series.times, time) - 1, 0) for time in times]
    return [
        max(series.values[first : max(last, first + 1)])
        for first, last in zip(starts, [*starts[1:], len(series.values)], strict=True)
    ]
