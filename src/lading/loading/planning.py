"""`plan`: what a run of a pipeline needs, before a byte of weights is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lading import host
from lading.errors import LadingError
from lading.latents import LatentFormat, PixelShape
from lading.loading.blueprint import Blueprint, read_blueprint
from lading.loading.phases import PhaseCall, phase_calls
from lading.loading.pipeline import default_device
from lading.loading.plans import ComponentPlan, PhasePlan, Plan
from lading.loading.prospects import make_prospect
from lading.loading.runs import Run, Wish, settle
from lading.memory.calibration import known_rates
from lading.memory.limits import Limits
from lading.memory.prediction import Allowance, Prospect
from lading.memory.rates import Rates
from lading.memory.trace import Trace, trace
from lading.sizes import parse_compute, parse_rate, parse_size

_ASSUMED_DTYPE = "bfloat16"
"""Of models that are not here yet, in which nearly all of them are published."""


@dataclass(frozen=True)
class Prepared:
    """A pipeline's networks and their calls, traced: all that a plan is made of for any limit.

    Attributes:
        traces: by component and entry.
        calls: in the order in which they happen; those that could not be traced are left out.
        untraced: components whose calls nobody knows.
    """

    blueprint: Blueprint
    latents: LatentFormat
    run: Run
    prospects: Mapping[str, Prospect]
    calls: tuple[PhaseCall, ...]
    traces: Mapping[tuple[str, str], Trace]
    untraced: tuple[str, ...]

    @property
    def lasting_bytes(self) -> int:
        """What all networks keep, whoever computes."""
        return sum(prospect.buffer_bytes for prospect in self.prospects.values())

    @property
    def resident_bytes(self) -> int:
        """Of all weights and buffers."""
        weights = sum(weight.nbytes for prospect in self.prospects.values() for weight in prospect.weights.values())
        return weights + self.lasting_bytes

    def known(self, call: PhaseCall) -> dict[str, Trace]:
        """The traces that a component's manager has when a phase begins, that phase's first."""
        before = self.calls[: self.calls.index(call) + 1]
        entries = [other.entry for other in reversed(before) if other.component == call.component]
        return {entry: self.traces[call.component, entry] for entry in entries}

    def minimum_memory(self) -> int:
        """Return the smallest limit with which every phase can compute."""
        lasting = self.lasting_bytes
        needs = [self.prospects[call.component].minimum_bytes(self.known(call), lasting) for call in self.calls]
        called = {call.component for call in self.calls}
        needs += [
            prospect.minimum_bytes({}, lasting) for name, prospect in self.prospects.items() if name not in called
        ]
        return max(needs)


def plan(
    model: str | os.PathLike[str],
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    batch_size: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    prompt_tokens: int | None = None,
    torch_dtype: torch.dtype | str | Mapping[str, torch.dtype | str | None] | None = None,
    device: str | torch.device | None = None,
    read_rate: float | str | None = None,
    copy_rate: float | str | None = None,
    compute: float | str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    require_fit: bool = True,
) -> Plan:
    """Say what a run of a pipeline needs, and how long it takes; no weight is read.

    Under a limit the plan is made by the planner that keeps the limit, for the calls that the pipeline makes. What is
    not given is as the pipeline has it by default.

    Args:
        model: a folder in the diffusers layout, a checkpoint file, "shapes", the id of a model that the catalog knows,
            which takes no network, or of another one on the Hugging Face Hub, whose configs and headers are read.
        memory_limit: bytes, or such as "8GB", as in `load_pipeline`; None for none, where everything is there at once.
        host_memory_limit: of host memory beside a device; on the CPU the smaller of the two counts.
        height: in pixels, and width with it.
        num_frames: of a film.
        batch_size: how many are made at once.
        steps: of denoising.
        guidance_scale: how closely to follow the prompt; 1 or less is no guidance.
        negative_prompt: only whether there is one counts.
        prompt_tokens: that text encoders make of a prompt; the most that the pipeline takes by default.
        torch_dtype: one for all networks, or a mapping from component names with a "default". None is what
            `load_pipeline` makes of a folder, and bfloat16 for models that are not here.
        device: that computes; it need not be there. None is the CPU under a limit, and else what torch finds.
        read_rate: of the disk, such as "7GB/s", in place of what `lading plan --calibrate` measured.
        copy_rate: from host memory to a device, such as "25GB/s"; it asks for one.
        compute: of the device, such as "100TFLOPS".
        revision: branch, tag or commit on the hub.
        variant: such as "fp16" for weights in "model.fp16.safetensors".
        token: for private and gated models.
        require_fit: raise where the limit is too small; else the plan says so, and is one for the smallest that works.

    Raises:
        ComponentError: there is no such model, or the catalog does not know its denoiser.
        ShapeError: the model cannot make this size, half of it is missing, or its networks do not belong together.
        MemoryLimitError: the limit is too small; its `minimum` works.
        DownloadError: the hub could not give the configs.

    >>> import lading
    >>> found = lading.plan("shapes", memory_limit="6MB", steps=4)
    >>> found.peak_bytes <= 6_000_000, [phase.component for phase in found.phases]
    (True, ['text_encoder', 'unet', 'vae'])
    """
    wish = Wish(height, width, num_frames, batch_size, steps, guidance_scale, negative_prompt, prompt_tokens)
    limited = memory_limit is not None or host_memory_limit is not None
    place = device_of(device, limited, copy_rate is not None)
    rates, source = rates_for(place, read_rate, copy_rate, compute)
    blueprint = read_blueprint(model, True, revision, variant, token)
    prepared = prepare(blueprint, wish, torch_dtype, place)
    limits = _limits(memory_limit, host_memory_limit, place)
    found = assemble(prepared, limits, place, rates, source)
    if require_fit:
        found.require_fit()
    return found


def prepare(blueprint: Blueprint, wish: Wish, torch_dtype: Any, device: torch.device) -> Prepared:
    """Build a pipeline's networks without weights, and trace every call that it will make."""
    latents = blueprint.latent_format()
    prospects = {
        name: make_prospect(name, network, _dtype_for(name, torch_dtype, blueprint), device, blueprint.name)
        for name, network in blueprint.networks.items()
    }
    modules = {name: prospect.module for name, prospect in prospects.items()}
    run = settle(wish, blueprint, latents, modules)
    calls, traces = [], {}
    for call in phase_calls(blueprint, latents, run, modules):
        if (call.component, call.entry) not in traces:
            try:
                traced = trace(modules[call.component], call.args, call.kwargs, call.entry, device)
            except LadingError:
                continue  # it decides by what tensors hold: the first call will tell
            traces[call.component, call.entry] = traced
        calls.append(call)
    traced_parts = {call.component for call in calls}
    untraced = tuple(name for name in prospects if name not in traced_parts)
    return Prepared(blueprint, latents, run, prospects, tuple(calls), traces, untraced)


def assemble(
    prepared: Prepared, limits: Allowance | None, device: torch.device, rates: Rates, rates_source: str
) -> Plan:
    """Make the plan of a prepared pipeline for limits; None for none."""
    minimum, run = prepared.minimum_memory(), prepared.run
    allowance = None
    if limits is not None:
        allowance = replace(limits, memory=max(limits.memory, minimum), lasting_bytes=prepared.lasting_bytes)
    phases = tuple(_phase(prepared, call, allowance, rates) for call in prepared.calls)
    frames = None if prepared.latents.frames is None else run.num_frames
    return Plan(
        prepared.blueprint.name,
        prepared.blueprint.pipeline_class or "",
        str(device),
        None if limits is None else limits.memory,
        None if limits is None or device.type == "cpu" else limits.host_memory,
        minimum,
        tuple(_component(name, prepared) for name in prepared.prospects),
        phases,
        PixelShape(run.batch_size, run.height, run.width, frames),
        run.latent,
        run.steps,
        run.prompt_tokens,
        rates,
        rates_source,
        untraced=prepared.untraced,
    )


def rates_for(
    device: torch.device,
    read: float | str | None = None,
    copy: float | str | None = None,
    compute: float | str | None = None,
) -> tuple[Rates, str]:
    """Return the rates to predict with, and where they come from: "measured", "given" or "assumed"."""
    rates, measured = known_rates(device)
    given = {
        name: parse(value)
        for name, parse, value in (
            ("read", parse_rate, read),
            ("copy", parse_rate, copy),
            ("compute", parse_compute, compute),
        )
        if value is not None
    }
    rates = replace(
        rates,
        read=given.get("read", rates.read),
        copy=given.get("copy", rates.copy),
        compute=given.get("compute", rates.compute),
    )
    if "compute" in given:
        rates = replace(rates, speeds=())  # they are another device's
    return rates, "given" if given else "measured" if measured else "assumed"


def device_of(device: str | torch.device | None, limited: bool, copies: bool = False) -> torch.device:
    """Return the device that a plan is for; see `plan`."""
    if device is None:
        return torch.device("cuda" if copies else "cpu" if limited else default_device())
    return torch.device(default_device() if device == "auto" else device)


def _limits(
    memory_limit: int | str | None, host_memory_limit: int | str | None, device: torch.device
) -> Allowance | None:
    """What the limits allow; see `Limits.of`."""
    if memory_limit is None and host_memory_limit is None:
        return None
    if device.type == "cpu":
        limits = Limits.of(memory_limit, host_memory_limit, None)
        assert limits is not None
        return Allowance(limits.memory)
    if memory_limit is None:
        raise LadingError(f"host_memory_limit={host_memory_limit!r} on a device asks for a memory_limit too")
    free = int(0.8 * host.available_memory())
    return Allowance(parse_size(memory_limit), free if host_memory_limit is None else parse_size(host_memory_limit))


def _dtype_for(name: str, torch_dtype: Any, blueprint: Blueprint) -> Any:
    dtype = torch_dtype.get(name, torch_dtype.get("default")) if isinstance(torch_dtype, Mapping) else torch_dtype
    if dtype is None and blueprint.place in ("catalog", "hub"):
        return _ASSUMED_DTYPE
    return dtype


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
    flops = sum(one.flops for one in traced.calls)
    if allowance is None:
        resident, prediction = prepared.resident_bytes, prospect.predict(traces, _EVERYTHING, rates)
        assert prediction is not None  # there is no limit
        slots = streamed = host_bytes = 0
        outline = prediction.outline
        others = prediction.plan.other_bytes - outline.fixed.nbytes - outline.rows_bytes(traces)
        peak = resident + traced.activation_bytes + others
    else:
        prediction = prospect.predict(traces, allowance, rates)
        assert prediction is not None  # assemble gives no less than the minimum
        placement = prediction.plan.placement
        slots = len(placement.slots) * placement.slot_bytes
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
        prediction.first_seconds(traced),
        prediction.call_seconds(traced),
    )


_EVERYTHING = Allowance(1 << 60, 1 << 60)
