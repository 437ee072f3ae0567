"""What really happened in one run: plain data, of which the page, the trace file and the summary are made.

Times are seconds since the recording began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from lading.sizes import format_seconds, format_size

PEAK = "peak memory"
STREAMED = "streamed in a call"
FIRST_TIME = "time of the first call"
CALL_TIME = "time of a call"
"""Quantities that are predicted, and measured."""

Lane: TypeAlias = Literal["load", "compute", "wait", "copy", "read", "plan"]


@dataclass(frozen=True)
class Part:
    """A component of the pipeline: how it came to be.

    Attributes:
        name: in `model_index.json`.
        loader: that made the object; empty where lading did not load it.
        model_class: library and class.
        files: that it was made of.
        ways: how each file was read, where that was recorded.
        tensors: parameters and buffers.
        seconds: from its start to the finished object; None where lading did not load it.
    """

    name: str
    loader: str
    model_class: str
    files: tuple[Path, ...]
    ways: tuple[str, ...]
    tensors: int
    nbytes: int
    dtype: str | None
    device: str | None
    seconds: float | None


@dataclass(frozen=True)
class Passed:
    """A tensor, or several alike, that passed from one part to another.

    Attributes:
        name: of the argument or the output.
        axes: names of the axes; empty where they are not known.
        count: of tensors of this shape in a list.

    >>> str(Passed("input_ids", (2, 32), "int64", "cpu", 512, ("batch", "tokens")))
    'input_ids  batch 2  tokens 32  int64  cpu'
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    nbytes: int
    axes: tuple[str, ...] = ()
    count: int = 1

    @property
    def extent(self) -> str:
        """The sizes, with the names of their axes where they are known."""
        if not self.axes:
            return " x ".join(map(str, self.shape)) or "a number"
        return "  ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))

    def __str__(self) -> str:
        times = [f"{self.count} times"] if self.count > 1 else []
        return "  ".join([self.name, self.extent, *times, self.dtype, self.device])


@dataclass(frozen=True)
class Call:
    """One call of a part.

    Attributes:
        part: of the pipeline; "pipeline" for its own methods.
        entry: the method.
        given: what went in.
        made: what came out.
        step: of denoising, from 1; None for others.
        timestep: that the denoiser was told; None where it is not known.
    """

    part: str
    entry: str
    start: float
    end: float
    given: tuple[Passed, ...]
    made: tuple[Passed, ...]
    step: int | None = None
    timestep: float | None = None

    @property
    def label(self) -> str:
        """The part, the method and the step."""
        return f"{self.part}.{self.entry}{'' if self.step is None else f', step {self.step}'}"

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Span:
    """What took time.

    Attributes:
        part: for which it was done; empty where that is not known.
        nbytes: that were moved.
    """

    lane: Lane
    name: str
    part: str
    start: float
    end: float
    nbytes: int = 0


@dataclass(frozen=True)
class Series:
    """Bytes over time; each value holds until the next.

    Attributes:
        name: of the part whose weights they are, or of what was measured.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[int, ...]

    @property
    def peak(self) -> int:
        return max(self.values, default=0)


@dataclass(frozen=True)
class Memory:
    """Memory where the parts compute.

    Attributes:
        weights: what each part's weights take, as lading placed them.
        measured: of all that the run takes; None where it is not measured.
        limit: None without one.
        beside: bytes that Python and the libraries may take beside what the limit is for, where these are measured
            too.
    """

    weights: tuple[Series, ...]
    measured: Series | None
    limit: int | None
    beside: int = 0

    @property
    def peak(self) -> int:
        """The most that was taken at a time, measured, or counted where it is not."""
        return self.measured.peak if self.measured is not None else max((s.peak for s in self.weights), default=0)


@dataclass(frozen=True)
class Comparison:
    """What was predicted of one part's calls, beside what was measured.

    Attributes:
        quantity: what is compared.
        unit: "B" or "s".
        measured: None where nothing tells it.
    """

    part: str
    quantity: str
    unit: Literal["B", "s"]
    predicted: float
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Of what was measured to what was predicted."""
        return self.measured / self.predicted if self.measured is not None and self.predicted > 0 else None


@dataclass(frozen=True)
class Picture:
    """What was drawn, made small: the bytes of a PNG file."""

    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Step:
    """One step of denoising.

    Attributes:
        forwards: of the denoiser.
        waited: seconds in which computation stood still for weights.
        read_bytes: from the disk while it ran.
        latent: that went in, as the first forward saw it.
    """

    number: int
    timestep: float | None
    start: float
    end: float
    forwards: int
    waited: float
    read_bytes: int
    latent: Passed | None

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Run:
    """What really happened while a pipeline, or a module, was recorded.

    Attributes:
        title: the class of the pipeline.
        notes: what the caller says of the run, such as prompt and seed.
        machine: what it ran on.
        seconds: that were recorded.
        spans: in the order of their start.
    """

    title: str
    notes: Mapping[str, Any]
    machine: Mapping[str, str]
    seconds: float
    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    spans: tuple[Span, ...]
    memory: Memory
    comparisons: tuple[Comparison, ...] = ()
    picture: Picture | None = None
    steps: tuple[Step, ...] = field(default=())

    @property
    def seconds_per_step(self) -> float | None:
        """The median, without the first step, which also does what only first calls do; None without steps."""
        seconds = [step.seconds for step in self.steps[1:] or self.steps]
        return median(seconds) if seconds else None

    @property
    def fits(self) -> bool | None:
        """Whether the limit was kept; None without one."""
        return None if self.memory.limit is None else self.memory.peak <= self.memory.limit + self.memory.beside

    def lane(self, lane: Lane) -> list[Span]:
        """Return what took time of one kind."""
        return [span for span in self.spans if span.lane == lane]

    def __str__(self) -> str:
        return "  ".join(self.summary())

    def summary(self) -> list[str]:
        """Return what counts, each in a few words."""
        words = []
        if self.memory.limit is not None:
            words.append(f"{'fits' if self.fits else 'does not fit'} in {format_size(self.memory.limit)}")
        over = self.fits and self.memory.peak > (self.memory.limit or 0)
        words.append(f"peak {format_size(self.memory.peak)}{', with what Python itself took' if over else ''}")
        if self.seconds_per_step is not None:
            count = len(self.steps)
            words.append(f"{format_seconds(self.seconds_per_step)} a step, {count} step{'s' if count > 1 else ''}")
        words.append(f"{format_seconds(self.seconds)} in all")
        return words
