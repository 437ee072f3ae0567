"""`manage`: modules and pipelines that are in memory already, from any library, put under a memory limit."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch

from lading.devices import find_device
from lading.errors import LadingError
from lading.memory.engine import bind_parameter
from lading.memory.limits import Limits
from lading.memory.management import Examples, Manager, manager_of
from lading.memory.outline import parameter_places
from lading.memory.plan import ModulePlan
from lading.memory.spool import Spool
from lading.memory.statistics import Statistics


class PipelineManager:
    """Keeps the networks of a pipeline, which take turns, within limits.

    Attributes:
        managers: component name -> its manager.
    """

    def __init__(self, managers: Mapping[str, Manager]) -> None:
        self.managers = dict(managers)

    @property
    def plan(self) -> dict[str, ModulePlan]:
        """Where the weights of each component live in its turn."""
        return {name: manager.plan for name, manager in self.managers.items()}

    def stats(self) -> dict[str, Statistics]:
        """What streaming did so far, by component."""
        return {name: manager.stats() for name, manager in self.managers.items()}

    def set_limit(self, memory_limit: int | str, host_memory_limit: int | str | None = None) -> None:
        """Keep other limits from the next call on.

        Raises:
            MemoryLimitError: one is too small for a component; the limits before stay.
        """
        for manager in self.managers.values():
            manager.set_limit(memory_limit, host_memory_limit)

    def release(self, weights: bool = False) -> None:
        """End the management; see `Manager.release`."""
        for manager in self.managers.values():
            manager.release(weights)


def manage(
    module_or_pipeline: Any,
    memory_limit: int | str,
    host_memory_limit: int | str | None = None,
    device: str | torch.device | None = None,
    example_inputs: Any = None,
) -> Manager | PipelineManager:
    """Put a module, or the networks of a diffusers pipeline, under a memory limit, whichever library loaded them.

    What was loaded under a limit gets the new one. Weights that are only in memory are written once to a temporary
    folder, which goes with the manager, and freed. They are frozen; adapters can be trained.

    Args:
        memory_limit: bytes, or such as "8GB", of the device for weights and activations together.
        host_memory_limit: of host memory, pinned, in which weights wait for a device; on the CPU the smaller limit
            counts.
        device: that computes; None is the CPU.
        example_inputs: of `forward`: a tuple, or a mapping of keyword arguments; tensors may be on the meta device. For
            a pipeline, a mapping from component names to these. Without them the first call tells what activations
            take.

    Raises:
        LadingError: the module is in training mode, or the weights cannot be written.
        MemoryLimitError: a limit is too small; the module keeps its weights.

    >>> import torch, lading
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(16))).eval()
    >>> manager = lading.manage(model, "1MB", example_inputs=(torch.empty(1, 256),))
    >>> model(torch.zeros(1, 256)).shape, manager.plan.peak_bytes <= 1_000_000
    (torch.Size([1, 256]), True)
    """
    if isinstance(module_or_pipeline, torch.nn.Module):
        if "lading_manager" in module_or_pipeline.__dict__:
            manager = manager_of(module_or_pipeline)
            manager.set_limit(memory_limit, host_memory_limit)
            return manager
        limits = _limits(memory_limit, host_memory_limit, device)
        return _adopt(module_or_pipeline, limits, _examples(example_inputs))
    parts = {
        name: part
        for name, part in getattr(module_or_pipeline, "components", {}).items()
        if isinstance(part, torch.nn.Module)
    }
    if not parts:
        raise LadingError(f"{type(module_or_pipeline).__name__} is no module, and no pipeline with modules")
    managed = {name: manager_of(part) for name, part in parts.items() if "lading_manager" in part.__dict__}
    limits = next((manager.limits for manager in managed.values()), None) or _limits(
        memory_limit, host_memory_limit, device
    )
    given = example_inputs or {}
    managers = {
        name: managed.get(name) or _adopt(part, limits, _examples(given.get(name))) for name, part in parts.items()
    }
    found = PipelineManager(managers)
    if managed:
        found.set_limit(memory_limit, host_memory_limit)
    expect_turns(module_or_pipeline)
    return found


def expect_turns(pipeline: Any) -> None:
    """Tell the managed networks of a pipeline in which order they will compute, as far as its class says."""
    order = str(getattr(pipeline, "model_cpu_offload_seq", None) or "").split("->")
    parts = [getattr(pipeline, name, None) for name in order]
    managers = [manager_of(part) for part in parts if part is not None and "lading_manager" in part.__dict__]
    for manager in managers[:1]:
        manager.limits.stage.expect(managers)


def _limits(memory_limit: int | str, host_memory_limit: int | str | None, device: str | torch.device | None) -> Limits:
    limits = Limits.of(memory_limit, host_memory_limit, None if device is None else find_device(device))
    assert limits is not None
    return limits


def _examples(example_inputs: Any) -> Examples:
    if example_inputs is None:
        return {}
    if isinstance(example_inputs, Mapping):
        return {"forward": ((), example_inputs)}
    return {"forward": (tuple(example_inputs), {})}


def _adopt(module: torch.nn.Module, limits: Limits, examples: Examples) -> Manager:
    """Write a module's weights to temporary files, and stream them from there."""
    if module.training and any(parameter.requires_grad for parameter in module.parameters()):
        raise LadingError(
            f"{type(module).__name__} is in training mode, and weights that are streamed are frozen: call eval(), or "
            "requires_grad_(False), and train adapters that you add afterwards"
        )
    adapters = _adapter_parameters(module)
    places = {name: own for name, own in parameter_places(module).items() if name not in adapters}
    trainable = [name for name in places if _current(places[name]).requires_grad]
    spool = Spool()
    try:
        for name, parameter in spool.take({name: _current(places[name]) for name in places}):
            bind_parameter(places[name], torch.empty_like(parameter, device="meta"))
        manager = Manager(module, spool.weights, spool.inventories, limits, examples)
    except BaseException:
        for name, tensor in spool.read().items():
            bind_parameter(places[name], tensor)
        for name in trainable:
            _current(places[name]).requires_grad_()
        spool.remove()
        raise
    weakref.finalize(manager, spool.remove)
    return manager


def _current(places: list[tuple[torch.nn.Module, str]]) -> torch.Tensor:
    owner, attribute = places[0]
    parameter = owner._parameters[attribute]
    assert parameter is not None
    return parameter


def _adapter_parameters(module: torch.nn.Module) -> set[str]:
    """Names of parameters that PEFT has put into a module; they stay in memory, where they can be trained."""
    if "peft" not in sys.modules:
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        f"{prefix}.{name}"
        for prefix, layer in module.named_modules()
        if isinstance(layer, BaseTunerLayer)
        for name, _ in cast("torch.nn.Module", layer).named_parameters()
        if name.split(".")[0] in layer.adapter_layer_names
    }
