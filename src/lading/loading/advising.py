"""What small changes to a plan would buy much, in one line for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lading import host
from lading.loading.forecast import Prepared, denoising_seconds
from lading.loading.plans import Plan
from lading.memory.prediction import Allowance
from lading.memory.rates import Rates
from lading.memory.trace import Trace
from lading.sizes import format_seconds, format_size

_WORTH = 0.8
"""A change is worth a line where a step then takes at most this share of its time."""
_LARGER = 1.25, 1.5, 2.0
"""Times the limit, that somebody may have to spare."""
_FLOAT8 = "float8_e4m3fn"


def advise(prepared: Prepared, limits: Allowance | None, rates: Rates, found: Plan) -> tuple[str, ...]:
    """Return a line for each small change that would buy much.

    Args:
        limits: of the plan; None for none.
        found: the plan, which fits.
    """
    if limits is None:
        return tuple(_of_too_little_memory(found))
    if not found.fits or not any(phase.role == "denoise" and phase.streamed_bytes for phase in found.phases):
        return ()
    allowance = replace(limits, lasting_bytes=prepared.lasting_bytes)
    changes = (_more_memory, _float8, _together)
    return tuple(line for change in changes for line in change(prepared, allowance, rates, found.seconds_per_step))


def _of_too_little_memory(found: Plan) -> Iterator[str]:
    free = host.available_memory()
    if found.device == "cpu" and found.peak_bytes > free:
        yield (
            f"{format_size(found.peak_bytes)} at once are more than the {format_size(free)} that are free here: under "
            f"a memory limit, from {format_size(found.minimum_memory)} on, what does not fit is streamed"
        )


def _more_memory(prepared: Prepared, allowance: Allowance, rates: Rates, seconds: float) -> Iterator[str]:
    for factor in _LARGER:
        larger = replace(allowance, memory=round(factor * allowance.memory))
        then = denoising_seconds(prepared, larger, rates)
        if then <= _WORTH * seconds:
            more, limit = format_size(larger.memory - allowance.memory), format_size(larger.memory)
            yield f"with {more} more (a limit of {limit}) a step takes {_change(then, seconds)}"
            return


def _float8(prepared: Prepared, allowance: Allowance, rates: Rates, seconds: float) -> Iterator[str]:
    stored = {name: prospect.stored_in(_FLOAT8) for name, prospect in prepared.prospects.items()}
    then = denoising_seconds(replace(prepared, prospects=stored), allowance, rates)
    if then <= _WORTH * seconds:
        yield (
            f"with its weights stored in float8, coarser but faster to read (lading convert --dtype {_FLOAT8}), a step "
            f"takes {_change(then, seconds)}"
        )


def _together(prepared: Prepared, allowance: Allowance, rates: Rates, seconds: float) -> Iterator[str]:
    """Weights that come once serve two calls."""
    if any(call.count > prepared.run.steps for call in prepared.calls if call.role == "denoise"):
        what, alone = "both passes of guidance in one batch", 0.5
    else:
        what, alone = "two at once (a batch size of 2)", 1.0
    denoisers = {call.component for call in prepared.calls if call.role == "denoise"}
    traces = {place: _doubled(trace) if place[0] in denoisers else trace for place, trace in prepared.traces.items()}
    try:
        then = alone * denoising_seconds(replace(prepared, traces=traces), allowance, rates)
    except ValueError:  # the larger batch does not fit
        return
    if alone == 1.0 and then / 2 <= _WORTH * seconds:
        yield f"{what} take {format_seconds(then / 2)} a step each, not {format_seconds(seconds)}"
    elif alone == 0.5 and then <= _WORTH * seconds:
        yield f"with {what} a step takes {_change(then, seconds)}"


def _doubled(trace: Trace) -> Trace:
    """About the trace of a call with twice the batch."""
    calls = tuple(
        replace(
            call,
            flops=2 * call.flops,
            operations=tuple(replace(one, flops=2 * one.flops, nbytes=2 * one.nbytes) for one in call.operations),
        )
        for call in trace.calls
    )
    return replace(trace, calls=calls, activation_bytes=2 * trace.activation_bytes)


def _change(then: float, now: float) -> str:
    return f"{format_seconds(then)}, not {format_seconds(now)}"
