"""Tables of steps: how long each way takes, and how that compares with what the machine allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.runs import Series

_COLUMNS = (
    "way",
    "limit GB",
    "s/step",
    "min - max",
    "x lading",
    "read GB/step",
    "x max(compute, read / rate)",
    "x max(compute, (size - limits) / rate)",
    "first step s",
    "preparation s",
    "peak GB",
)


@dataclass(frozen=True)
class Row:
    """One way under one limit.

    Attributes:
        limit: on the memory that computes; 0 for none.
        ours: lading under the same limit.
        host_limit: bytes that can stay in the host's memory besides.
        moved: the figure that says how many bytes a step streamed.
        peak: the figure of the memory that the limit is on.
    """

    way: str
    limit: int
    series: Series
    ours: Series
    host_limit: int = 0
    moved: str = "read"
    peak: str = "peak"


@dataclass(frozen=True)
class Bounds:
    """What no way can beat, round by round.

    Attributes:
        compute: seconds of a step with everything resident.
        rates: bytes a second of the link that weights come over.
        nbytes: of the weights.
    """

    compute: Sequence[float]
    rates: Sequence[float]
    nbytes: int


def print_steps(rows: Sequence[Row], bounds: Bounds) -> None:
    """Print a row for each way and limit; where one has no figures, the reason."""
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for row in rows:
        cells = [
            row.way,
            f"{row.limit / 1e9:.2f}" if row.limit else "-",
            *(_figures(row, bounds) if row.series.runs else _reason(row)),
        ]
        print(f"| {' | '.join(cells)} |")
    if bounds.compute and bounds.rates:
        seconds, rates = (", ".join(f"{x:.2f}" for x in xs) for xs in (bounds.compute, [r / 1e9 for r in bounds.rates]))
        print(f"\nRound by round: resident {seconds} s/step, rate {rates} GB/s; size {bounds.nbytes / 1e9:.2f} GB")
    sums = {round(run["sum"], 3): row.way for row in rows for run in row.series.runs}
    if len(sums) > 1:
        print(f"\nNot every way computed the same: {', '.join(f'{way} {total}' for total, way in sums.items())}")


def _reason(row: Row) -> list[str]:
    return [f"cannot: {row.series.failure or 'not run'}", *["-"] * (len(_COLUMNS) - 3)]


def _figures(row: Row, bounds: Bounds) -> list[str]:
    runs, steps = row.series.runs, [run["step"] for run in row.series.runs]
    ours = f"{row.series.ratio(row.ours, 'step'):.2f}" if len(row.ours.runs) == len(runs) else "-"
    moved = f"{row.series.median(row.moved) / 1e9:.2f}" if row.moved in runs[0] else "-"
    return [
        f"{median(steps):.2f}",
        f"{min(steps):.2f} - {max(steps):.2f}",
        ours,
        moved,
        _ratio(row, bounds, lambda run: run.get(row.moved)),
        _ratio(row, bounds, lambda run: max(0, bounds.nbytes - row.limit - row.host_limit)),
        f"{row.series.median('first'):.1f}",
        f"{row.series.median('prepared'):.1f}",
        f"{max(run[row.peak] for run in runs) / 1e9:.2f}",
    ]


def _ratio(row: Row, bounds: Bounds, streamed: Callable[[dict[str, float]], float | None]) -> str:
    """The median over the rounds of a step's seconds over those that its bytes and its computation take at least."""
    ratios = []
    for run, compute, rate in zip(row.series.runs, bounds.compute, bounds.rates, strict=False):
        nbytes = streamed(run)
        if nbytes is None:
            return "-"
        ratios.append(run["step"] / max(compute, nbytes / rate))
    return f"{median(ratios):.2f}" if ratios else "-"
