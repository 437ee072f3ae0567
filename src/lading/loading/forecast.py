"""What a traced pipeline needs within limits, phase by phase. No memory, no file, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lading.latents import LatentFormat, PixelShape
from lading.loading.blueprint import Blueprint
from lading.loading.phases import PhaseCall
from lading.loading.plans import ComponentPlan, Least, PhasePlan, Plan, TrainingPlan
from lading.loading.runs import Run
from lading.memory.prediction import Allowance, Prediction, Prospect
from lading.memory.rates import Rates
from lading.memory.trace import Trace

_UPDATE_PASSES = 24
"""Times that torch's AdamW, and the norm of gradients before it, read or write as many bytes as learn."""


@dataclass(frozen=True)
class Prepared:
    """A pipeline's networks and their calls, traced: all that a plan is made of for any limit.

    Attributes:
        traces: by component and entry.
        calls: in the order in which they happen; those that could not be traced are left out.
        untraced: components whose calls nobody knows.
        examples: small calls of components with which they are planned when they are loaded, where those are not
            among the calls.
        training: what learns; None for a run that draws.
    """

    blueprint: Blueprint
    latents: LatentFormat
    run: Run
    prospects: Mapping[str, Prospect]
    calls: tuple[PhaseCall, ...]
    traces: Mapping[tuple[str, str], Trace]
    untraced: tuple[str, ...]
    examples: Mapping[str, Trace]
    training: TrainingPlan | None = None

    @property
    def lasting_bytes(self) -> int:
        """What all networks keep, whoever computes."""
        return sum(prospect.buffer_bytes for prospect in self.prospects.values())

    def resident_bytes(self, call: PhaseCall) -> int:
        """Of all weights and buffers that are there together, without a limit, when a component is called.

        What prompts and pictures are encoded with is gone before training begins.
        """
        there = set(self.prospects)
        if self.training is not None:
            learning = {other.component for other in self.calls if other.backward}
            there = learning if call.backward else there - learning
        weights = sum(prospect.weight_bytes for name, prospect in self.prospects.items() if name in there)
        return weights + sum(prospect.buffer_bytes for name, prospect in self.prospects.items() if name in there)

    def held_bytes(self, call: PhaseCall) -> int:
        """What is there beside weights, buffers and a call's own tensors: what learns, its optimizer's states, and what
        the components before it in a step have saved for the way back.
        """
        if self.training is None or not call.backward:
            return 0
        before = self.calls[: self.calls.index(call)]
        saved = sum(self.traces[one.component, one.entry].activation_bytes for one in before if one.backward)
        return saved + self.training.beside_bytes

    def update_seconds(self, call: PhaseCall, rates: Rates) -> float:
        """Predict how long the optimizer takes when gradients have come back through all that learns."""
        if self.training is None or not call.backward or call is not self.calls[-1]:
            return 0.0
        return _UPDATE_PASSES * self.training.trainable_bytes / rates.memory

    def streams(self, call: PhaseCall) -> bool:
        """Whether weights may come from the disk at each call: those that are trained stay."""
        return self.training is None or not call.backward or self.training.method != "full"

    def known(self, call: PhaseCall) -> dict[str, Trace]:
        """The traces that a component's manager has when a phase begins, that phase's first."""
        before = self.calls[: self.calls.index(call) + 1]
        entries = [other.entry for other in reversed(before) if other.component == call.component]
        return {entry: self.traces[call.component, entry] for entry in entries}

    def least(self) -> Least:
        """Return the smallest limits with which every phase can compute."""
        lasting = self.lasting_bytes
        traces: dict[str, dict[str, Trace]] = {name: {} for name in self.prospects}
        activation = dict.fromkeys(self.prospects, 0)
        needs = {}
        for name, one in self.prospects.items():
            example = {"forward": self.examples[name]} if name in self.examples else {}
            needs[name] = one.minimum_bytes(example, lasting)
            activation[name] = max((trace.activation_bytes for trace in example.values()), default=0)
        for call in self.calls:
            name, prospect = call.component, self.prospects[call.component]
            traces[name] = self.known(call)
            others = lasting + self.held_bytes(call)
            if self.streams(call):
                need = prospect.minimum_bytes(traces[name], others)
            else:
                need = _within(prospect, traces[name], _EVERYTHING, Rates()).plan.peak_bytes + others
            if need >= needs[name]:
                needs[name] = need
                activation[name] = max(one.activation_bytes for one in traces[name].values())
        most = max(needs, key=lambda name: needs[name])
        host_memory = max(one.minimum_host_bytes(traces[name]) for name, one in self.prospects.items())
        return Least(needs[most], host_memory, most, activation[most])


def forecast(
    prepared: Prepared, limits: Allowance | None, device: torch.device, rates: Rates, rates_source: str
) -> Plan:
    """Make the plan of a prepared pipeline for limits; None for none."""
    least, run = prepared.least(), prepared.run
    allowance = None
    if limits is not None:
        allowance = Allowance(max(limits.memory, least.memory), max(limits.host_memory, least.host_memory))
    phases = tuple(_phase(prepared, call, allowance, rates) for call in prepared.calls)
    frames = None if prepared.latents.frames is None else run.num_frames
    return Plan(
        prepared.blueprint.name,
        prepared.blueprint.pipeline_class or "",
        str(device),
        None if limits is None else limits.memory,
        None if limits is None or device.type == "cpu" else limits.host_memory,
        least,
        tuple(_component(name, prepared) for name in prepared.prospects),
        phases,
        PixelShape(run.batch_size, run.height, run.width, frames),
        run.latent,
        run.steps,
        run.prompt_tokens,
        rates,
        rates_source,
        untraced=prepared.untraced,
        training=prepared.training,
    )


def _component(name: str, prepared: Prepared) -> ComponentPlan:
    weights = prepared.prospects[name].weights
    shares: dict[str, int] = {}
    for weight in weights.values():
        dtype = str(weight.dtype).removeprefix("torch.")
        shares[dtype] = shares.get(dtype, 0) + weight.nbytes
    return ComponentPlan(
        name,
        prepared.blueprint.networks[name].model_class,
        sum(torch.Size(weight.shape).numel() for weight in weights.values()),
        sum(shares.values()),
        max(shares, key=lambda dtype: shares[dtype], default="-"),
    )


def _phase(prepared: Prepared, call: PhaseCall, allowance: Allowance | None, rates: Rates) -> PhasePlan:
    prospect, traces = prepared.prospects[call.component], prepared.known(call)
    traced = traces[call.entry]
    flops, held = sum(one.flops for one in traced.all_calls), prepared.held_bytes(call)
    update_seconds = prepared.update_seconds(call, rates)
    if allowance is None:
        resident, prediction = prepared.resident_bytes(call), _within(prospect, traces, _EVERYTHING, rates)
        slots = streamed = host_bytes = 0
        outline = prediction.outline
        others = prediction.plan.other_bytes - outline.fixed.nbytes - outline.rows_bytes(traces) + held
        peak = resident + traced.activation_bytes + others
    else:
        prediction = _within(prospect, traces, allowed(prepared, call, allowance), rates)
        placement = prediction.plan.placement
        slots = sum(placement.slot_sizes)
        resident, streamed = placement.nbytes - slots, prediction.streamed_bytes(traced)
        others, peak, host_bytes = prediction.plan.other_bytes, prediction.plan.peak_bytes, placement.host_nbytes
    return PhasePlan(
        call.component,
        call.role,
        call.entry,
        call.count,
        flops,
        resident,
        slots,
        streamed,
        prediction.plan.activation_bytes,
        others,
        peak,
        host_bytes,
        prediction.first_seconds(traced) + update_seconds,
        prediction.call_seconds(traced) + update_seconds,
    )


_EVERYTHING = Allowance(1 << 60, 1 << 60)


def _within(prospect: Prospect, traces: Mapping[str, Trace], allowance: Allowance, rates: Rates) -> Prediction:
    prediction = prospect.predict(traces, allowance, rates)
    assert prediction is not None  # there is no less than the least
    return prediction


def allowed(prepared: Prepared, call: PhaseCall, allowance: Allowance) -> Allowance:
    """Return what a component may take when it is called, within what all of them may."""
    lasting = prepared.lasting_bytes + prepared.held_bytes(call)
    if not prepared.streams(call):
        return Allowance(_EVERYTHING.memory, allowance.host_memory, lasting)
    return replace(allowance, lasting_bytes=lasting)


def denoising_seconds(prepared: Prepared, allowance: Allowance, rates: Rates) -> float:
    """Predict a step of denoising after the first.

    Raises:
        ValueError: the allowance is too small.
    """
    seconds = 0.0
    for call in prepared.calls:
        if call.role == "denoise":
            traces = prepared.known(call)
            prospect = prepared.prospects[call.component]
            prediction = prospect.predict(traces, allowed(prepared, call, allowance), rates)
            if prediction is None:
                raise ValueError("the allowance is too small")
            seconds += call.count * prediction.call_seconds(traces[call.entry])
    return seconds / prepared.run.steps
