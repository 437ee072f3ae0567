"""Which component of a pipeline is called when, how often, and with what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lading.catalog.architecture import Extent
from lading.latents import LatentFormat
from lading.loading.blueprint import AUTOENCODERS, Blueprint
from lading.loading.examples import example_call
from lading.loading.plans import Role
from lading.loading.runs import Run

_DECODERS = (*AUTOENCODERS, "audio_vae", "vocoder", "safety_checker")
_SEEING = ("image_encoder",)
"""Components that are called only where the pipeline is given a picture."""


@dataclass(frozen=True)
class PhaseCall:
    """The calls of one method of a component.

    Attributes:
        entry: the method.
        count: of calls.
        args: tensors are on the meta device; likewise in `kwargs`.
        backward: whether gradients come back through it.
    """

    component: str
    role: Role
    entry: str
    count: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    backward: bool = False


def phase_calls(
    blueprint: Blueprint, latents: LatentFormat, run: Run, modules: Mapping[str, torch.nn.Module]
) -> list[PhaseCall]:
    """Return the calls of a run in the order in which its components compute.

    Components whose calls nobody knows are left out.
    """
    found: list[PhaseCall] = []
    for name in _order(blueprint):
        module, role = modules[name], role_of(name, blueprint)
        if role == "denoise":
            found += _denoising(name, module, blueprint, latents, run)
        elif name in AUTOENCODERS:
            found += _autoencoding(name, module, latents, run)
        elif name not in _SEEING or run.takes_picture:
            found += _calls(
                name, role, 2 if run.guided and role == "encode" else 1, module, _extent(run, run.batch_size)
            )
    return sorted(found, key=lambda call: ("encode", "denoise", "decode").index(call.role))


def training_calls(
    blueprint: Blueprint, run: Run, modules: Mapping[str, torch.nn.Module], learning: Collection[str]
) -> list[PhaseCall]:
    """Return the calls of training in the order in which they happen: prompts and pictures are encoded once before.

    Args:
        learning: components that gradients come back through.
    """
    found: list[PhaseCall] = []
    for name in _order(blueprint):
        module, extent = modules[name], _extent(run, run.batch_size)
        if name in learning:
            found += [replace(call, backward=True) for call in _calls(name, "train", run.steps, module, extent)]
        elif name in AUTOENCODERS:
            found += _encoding(name, module, run)
        elif role_of(name, blueprint) == "encode" and name not in _SEEING:
            found += _calls(name, "encode", 1, module, extent)
    return sorted(found, key=lambda call: call.role == "train")


def role_of(name: str, blueprint: Blueprint) -> Role:
    """Return what a component is for."""
    if name in blueprint.denoisers or name.startswith("controlnet"):
        return "denoise"
    return "decode" if name in _DECODERS else "encode"


def _order(blueprint: Blueprint) -> list[str]:
    """The pipeline's order, as far as its class says it."""
    import diffusers

    pipeline_class = getattr(diffusers, (blueprint.pipeline_class or "").rpartition(".")[2] or "-", None)
    order = str(getattr(pipeline_class, "model_cpu_offload_seq", None) or "").split("->")
    return sorted(blueprint.networks, key=lambda name: order.index(name) if name in order else len(order))


def _denoising(
    name: str, module: torch.nn.Module, blueprint: Blueprint, latents: LatentFormat, run: Run
) -> list[PhaseCall]:
    unconditional = [other for other in blueprint.denoisers if other.startswith("unconditional")]
    sharing = [other for other in blueprint.denoisers if other not in unconditional]
    if name in unconditional:
        count = run.steps if run.guided else 0
    else:
        passes = latents.forwards if run.guided and not unconditional else 1
        place = sharing.index(name) if name in sharing else 0
        share = len(sharing) if name in sharing else 1  # one for high noise, one for low
        count = passes * ((run.steps + share - 1 - place) // share)
    batch = run.batch_size * (2 if run.guided and latents.guidance == "batch" else 1)
    return _calls(name, "denoise", count, module, _extent(run, batch))


def _autoencoding(name: str, module: torch.nn.Module, latents: LatentFormat, run: Run) -> list[PhaseCall]:
    dtype = next(module.parameters()).dtype
    sizes, folded = dict(run.latent.sizes), latents.folded
    sizes |= {"frames": sizes.get("frames", 1) - run.latent.padding}
    latent = [sizes["batch"], sizes["channels"] // folded**2]
    latent += [sizes["frames"]] if "frames" in run.latent.axes else []
    latent += [sizes["height"] * folded, sizes["width"] * folded]
    decode = PhaseCall(name, "decode", "decode", 1, (torch.empty(latent, dtype=dtype, device="meta"),), {})
    return [*(_encoding(name, module, run) if run.takes_picture else []), decode]


def _encoding(name: str, module: torch.nn.Module, run: Run) -> list[PhaseCall]:
    encode = _calls(name, "encode", 1, module, _extent(run, run.batch_size))
    picture = [value for call in encode for value in call.kwargs.values() if isinstance(value, torch.Tensor)][:1]
    return [PhaseCall(name, "encode", "encode", 1, (tensor,), {}) for tensor in picture]


def _calls(name: str, role: Role, count: int, module: torch.nn.Module, extent: Extent) -> list[PhaseCall]:
    examples = example_call(module, extent)
    return [
        PhaseCall(name, role, entry, count, args, kwargs) for entry, (args, kwargs) in examples.items() if count > 0
    ]


def _extent(run: Run, batch: int) -> Extent:
    return Extent(batch, run.height, run.width, run.num_frames, run.prompt_tokens)
