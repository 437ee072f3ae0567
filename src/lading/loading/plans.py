"""What a run of a pipeline needs, component by component and phase by phase, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lading.errors import MemoryLimitError
from lading.latents import LatentShape, PixelShape
from lading.memory.rates import Rates
from lading.sizes import format_count, format_seconds, format_size
from lading.tables import format_table

Role: TypeAlias = Literal["encode", "denoise", "decode", "train"]
"""What a phase is for: prompts and pictures to numbers, noise to latents, latents to pixels, a step of training."""


@dataclass(frozen=True)
class ComponentPlan:
    """A network of the pipeline.

    Attributes:
        name: what the pipeline calls it.
        model_class: library and class, such as "diffusers.QwenImageTransformer2DModel".
        parameters: how many; shared ones once.
        nbytes: of the parameters, in the dtypes in which they compute.
        dtype: of most of them.
    """

    name: str
    model_class: str
    parameters: int
    nbytes: int
    dtype: str


@dataclass(frozen=True)
class PhasePlan:
    """The time in which one component computes.

    Attributes:
        component: its name.
        role: what it is for.
        entry: the method that is called: "forward", "encode" or "decode".
        calls: how often, in the whole run.
        flops: of one call.
        resident_bytes: weights that stay where the component computes until the phase ends.
        slot_bytes: memory through which its other weights pass.
        streamed_bytes: that pass through it at each call.
        activation_bytes: the most that tensors of a call take, workspaces included.
        other_bytes: buffers, parameters that must always be there, staging.
        peak_bytes: the most that is taken at a time.
        host_bytes: of host memory beside a device.
        first_seconds: predicted for the first call, with the read of what stays.
        call_seconds: predicted for each call after it.
    """

    component: str
    role: Role
    entry: str
    calls: int
    flops: int
    resident_bytes: int
    slot_bytes: int
    streamed_bytes: int
    activation_bytes: int
    other_bytes: int
    peak_bytes: int
    host_bytes: int
    first_seconds: float
    call_seconds: float

    @property
    def seconds(self) -> float:
        """Predicted for all calls."""
        return self.first_seconds + (self.calls - 1) * self.call_seconds


@dataclass(frozen=True)
class TrainingPlan:
    """What a step of training holds beside what it streams.

    Attributes:
        method: "lora", "full" or "textual-inversion".
        rank: of a LoRA.
        parameters: that are trained.
        trainable_bytes: of these parameters.
        gradient_bytes: of their gradients.
        optimizer_bytes: of the optimizer's states.
    """

    method: str
    rank: int | None
    parameters: int
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def beside_bytes(self) -> int:
        """What is held beside the network's own weights and, as they come and go, gradients."""
        return self.optimizer_bytes + (0 if self.method == "full" else self.trainable_bytes)

    def __str__(self) -> str:
        rank = f" of rank {self.rank}" if self.rank else ""
        sizes = (self.trainable_bytes, self.gradient_bytes, self.optimizer_bytes)
        weights, gradients, states = map(format_size, sizes)
        return (
            f"{self.method}{rank}: {format_count(self.parameters)} parameters learn: weights {weights}, gradients "
            f"{gradients}, optimizer {states}"
        )


@dataclass(frozen=True)
class Least:
    """The smallest limits that work.

    Attributes:
        memory: bytes where the components compute.
        host_memory: bytes of host memory beside a device.
        component: that needs so much.
        activation_bytes: of it, for the tensors of its calls.
    """

    memory: int
    host_memory: int
    component: str
    activation_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a run needs; `print` it.

    Attributes:
        model: as it was named.
        pipeline_class: such as "diffusers.QwenImagePipeline".
        device: that computes.
        memory_limit: bytes on it; None for none, and then all components are there at once.
        host_memory_limit: bytes of host memory beside a device.
        least: the smallest limits that work.
        components: all networks, in the pipeline's order.
        phases: in the order in which they compute.
        pixels: what is made.
        latent: what is denoised.
        steps: of denoising.
        prompt_tokens: for which the text encoders are planned.
        rates: that seconds are predicted with.
        rates_source: where they come from: "measured", "given" or "assumed".
        advice: one line for each small change that would buy much.
        untraced: components whose calls nobody knows, so that only their weights are planned.
        training: None for a run that draws.
    """

    model: str
    pipeline_class: str
    device: str
    memory_limit: int | None
    host_memory_limit: int | None
    least: Least
    components: tuple[ComponentPlan, ...]
    phases: tuple[PhasePlan, ...]
    pixels: PixelShape
    latent: LatentShape
    steps: int
    prompt_tokens: int
    rates: Rates
    rates_source: str
    advice: tuple[str, ...] = ()
    untraced: tuple[str, ...] = ()
    training: TrainingPlan | None = None

    @property
    def minimum_memory(self) -> int:
        """The smallest limit that works, in bytes."""
        return self.least.memory

    @property
    def fits(self) -> bool:
        """Whether the limits are enough. Where they are not, the phases are those of the smallest that are."""
        return self._has_memory and self._has_host_memory

    @property
    def _has_memory(self) -> bool:
        return self.memory_limit is None or self.memory_limit >= self.least.memory

    @property
    def _has_host_memory(self) -> bool:
        return self.host_memory_limit is None or self.host_memory_limit >= self.least.host_memory

    @property
    def peak_bytes(self) -> int:
        """The most that is taken at a time, over all phases."""
        return max(phase.peak_bytes for phase in self.phases)

    @property
    def seconds_per_step(self) -> float:
        """Predicted for a step of denoising, or of training, after the first."""
        return (
            sum(phase.calls * phase.call_seconds for phase in self.phases if phase.role in ("denoise", "train"))
            / self.steps
        )

    @property
    def seconds(self) -> float:
        """Predicted for the whole run, from the first byte read."""
        return sum(phase.seconds for phase in self.phases)

    def require_fit(self) -> None:
        """Do nothing where the limit is enough.

        Raises:
            MemoryLimitError: it is not.
        """
        least = self.least
        if not self._has_host_memory:
            assert self.host_memory_limit is not None
            raise MemoryLimitError(
                f"{self.model} cannot run with {format_size(self.host_memory_limit)} of host memory: its weights pass "
                f"through {format_size(least.host_memory)} on their way to the device: give it at least "
                f"{least.host_memory} bytes",
                least.host_memory,
            )
        if not self._has_memory:
            assert self.memory_limit is not None
            others = least.memory - least.activation_bytes
            raise MemoryLimitError(
                f"{self.model} cannot run in {format_size(self.memory_limit)}: its {least.component} needs "
                f"{format_size(least.activation_bytes)} for activations and {format_size(others)} for all else: "
                f"give it at least {least.memory} bytes, or make something smaller",
                least.memory,
            )

    def as_dict(self) -> dict[str, Any]:
        """The plan for JSON, with the keys of `lading plan --json`; those of host memory beside a device only."""
        host = {"host_memory_limit": self.host_memory_limit, "minimum_host_memory": self.least.host_memory}
        found = {
            "fits": self.fits,
            "memory_limit": self.memory_limit,
            "minimum_memory": self.minimum_memory,
            **(host if self.device != "cpu" else {}),
            "components": [vars(component) for component in self.components],
            "phases": [
                {
                    "component": phase.component,
                    "resident_bytes": phase.resident_bytes,
                    "streamed_bytes": phase.streamed_bytes,
                    "activation_bytes": phase.activation_bytes,
                    "peak_bytes": phase.peak_bytes,
                    "seconds": phase.seconds,
                }
                for phase in self.phases
            ],
            "pixels": dict(self.pixels.sizes),
            "latent": dict(self.latent.sizes),
            "tokens": self.latent.tokens,
        }
        return found if self.training is None else {**found, "training": vars(self.training)}

    def __str__(self) -> str:
        parts = [self._heading(), self._sizes(), self._component_table(), self._phase_table(), self._time()]
        return "\n\n".join([*parts, *(["\n".join(self.advice)] if self.advice else [])])

    def _heading(self) -> str:
        pipeline = f"  {self.pipeline_class}" if self.pipeline_class else ""
        if self.memory_limit is None:
            limit = f"no limit: {format_size(self.peak_bytes)} at the peak"
        else:
            beside = f" and {format_size(self.host_memory_limit)} of host memory" if self.host_memory_limit else ""
            limit = f"in {format_size(self.memory_limit)}{beside}: {'fits' if self.fits else 'does not fit'}"
        return f"{self.model}{pipeline}\non {self.device} {limit}; the least is {format_size(self.minimum_memory)}"

    def _sizes(self) -> str:
        tokens = f"{self.latent.tokens} tokens, {self.prompt_tokens} of the prompt"
        learns = f"\n{self.training}" if self.training is not None else ""
        return f"{self.pixels}\n{self.latent}  {tokens}{learns}"

    def _component_table(self) -> str:
        total = sum(component.nbytes for component in self.components)
        rows = [
            (one.name, one.model_class, format_count(one.parameters), format_size(one.nbytes), one.dtype)
            for one in self.components
        ]
        rows.append(("", "", format_count(sum(one.parameters for one in self.components)), format_size(total), ""))
        return format_table(("component", "class", "parameters", "bytes", "dtype"), rows, {"parameters", "bytes"})

    def _phase_table(self) -> str:
        names = ("resident", "slots", "streamed", "activations", "other", "peak")
        rows = []
        for phase in self.phases:
            sizes = (
                phase.resident_bytes,
                phase.slot_bytes,
                phase.streamed_bytes,
                phase.activation_bytes,
                phase.other_bytes,
                phase.peak_bytes,
            )
            rows.append(
                (
                    phase.component if phase.entry == "forward" else f"{phase.component}.{phase.entry}",
                    str(phase.calls),
                    format_count(phase.flops, "G"),
                    *(format_size(size) if size else "-" for size in sizes),
                    format_seconds(phase.first_seconds),
                    format_seconds(phase.call_seconds) if phase.calls > 1 else "-",
                )
            )
        columns = ("phase", "calls", "FLOPs", *names, "first call", "others")
        table = format_table(columns, rows, set(columns[1:]))
        missing = f"\nnot planned, as nobody knows its calls: {', '.join(self.untraced)}" if self.untraced else ""
        return table + missing

    def _time(self) -> str:
        rates = self.rates
        copies = f", copies {format_size(round(rates.copy))}/s" if self.device != "cpu" else ""
        source = {
            "assumed": "; assumed: `lading plan --calibrate` measures",
            "given": "; as given",
            "measured": "; as measured here",
        }[self.rates_source]
        step, whole = format_seconds(self.seconds_per_step), format_seconds(self.seconds)
        speed = f"disk {format_size(round(rates.read))}/s{copies}, compute {format_count(rates.compute, 'G')}FLOPS"
        return f"{step} a step, {self.steps} steps, {whole} in all\n({speed}{source})"
