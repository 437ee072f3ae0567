"""Replaceable layers: each takes a layer's place in its model and keeps its weights where `vram_config` says.

Names stay: parameters, buffers and children are the replaced layer's own, under the names that they had.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from lading.checkpoint import DiskMap
from lading.errors import LadingError
from lading.memory.hot_lora import HotLoRA
from lading.memory.residency import Residency
from lading.memory.rules import Rules, State, parse_limit, parse_rules
from lading.memory.states import LayerWeights, watch_state_dict
from lading.memory.weights import hold

LayerT = TypeVar("LayerT", bound="ReplaceableLayer")
_SHARED = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class ReplaceableLayer(torch.nn.Module):
    """What the replaceable layers have in common.

    Attributes:
        weights: the layer's parameters and buffers, and which state they are in.
    """

    weights: LayerWeights

    @property
    def name(self) -> str:
        """The layer's name in its model."""
        return self.weights.name

    @property
    def state(self) -> State:
        """The state in which the layer's weights stay: "offload", "onload" or "preparing"."""
        return self.weights.state

    def onload(self) -> None:
        """Bring the weights into the onload state; a layer that is called while offloaded does so itself.

        Raises:
            CheckpointError: they cannot be read from the disk.
        """
        if self.weights.state == "offload":
            self.weights.move("onload")

    def offload(self) -> None:
        """Bring the weights into the offload state."""
        self.weights.move("offload")

    def _apply(self: LayerT, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LayerT:
        require_unmoved(self.name or type(self).__name__, self.weights.rules, fn)
        return self


class AutoWrappedModule(ReplaceableLayer):
    """Takes the place of any module: its weights are where `vram_config` says, and where it computes during a call.

    Reading an attribute gives the module's; a parameter is given as it computes, and a method runs as a call does.

    Args:
        module: whose place it takes; its parameters are replaced.
        name: of the module in its model; names in `disk_map` begin with it.
        vram_limit: in GiB, up to which weights are prepared; None for no limit.
        disk_map: where weights are read from that are on the disk.
        vram_config: the eight keys; see `enable_vram_management`.

    Raises:
        LadingError: the `vram_config` cannot be followed.
        CheckpointError: the disk map does not hold the weights.

    >>> import torch, lading
    >>> config = {"offload_dtype": torch.float8_e4m3fn, "computation_dtype": torch.float32, "computation_device": "cpu"}
    >>> norm = lading.AutoWrappedModule(torch.nn.LayerNorm(8), **config)
    >>> norm(torch.ones(1, 8)).dtype, norm.state
    (torch.float32, 'preparing')
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        name: str = "",
        vram_limit: float | str | None = None,
        disk_map: DiskMap | None = None,
        **vram_config: Any,
    ) -> None:
        super().__init__()
        rules = parse_rules(vram_config)
        managed = list(self._managed(module))
        weights = manage_weights(name, managed, rules, Residency(parse_limit(vram_limit)), disk_map)
        for _, part in managed:
            watch_state_dict(part, weights)
        self.__dict__.update({attribute: module.__dict__[attribute] for attribute in _SHARED})
        self.__dict__.update(module=module, weights=weights, training=module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.weights.bound():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> AutoWrappedModule:
        super().train(mode)
        self.module.train(mode)
        return self

    def extra_repr(self) -> str:
        return f"{type(self.module).__name__}({self.module.extra_repr()}), {self.state}"

    @staticmethod
    def _managed(module: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Module]]:
        return list(module.named_modules())

    def __getattr__(self, name: str) -> Any:
        weights, module = self.__dict__.get("weights"), self.__dict__.get("module")
        if weights is None or module is None:
            return super().__getattr__(name)
        tensor = weights.tensor(name)
        if tensor is not None:
            return tensor
        value = getattr(module, name)
        if not inspect.ismethod(value) or value.__self__ is not module:
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            with weights.bound():
                return value(*args, **kwargs)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        module = self.__dict__.get("module")
        if module is not None and name not in self.__dict__ and hasattr(module, name):
            setattr(module, name, value)
        else:
            super().__setattr__(name, value)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.module._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.module._load_from_state_dict(*args, **kwargs)


class AutoWrappedNonRecurseModule(AutoWrappedModule):
    """Takes the place of a module that holds parameters beside its children: the children are not part of it.

    See `AutoWrappedModule`.
    """

    @staticmethod
    def _managed(module: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Module]]:
        return [("", module)]


class AutoWrappedLinear(ReplaceableLayer, torch.nn.Linear):
    """Takes the place of a linear layer: its weights are where `vram_config` says, and adapters come and go on it.

    It still is a `torch.nn.Linear`. Reading `weight` or `bias` gives it as it computes.

    Args:
        module: whose place it takes; its parameters are replaced.
        name: of the layer in its model; names in `disk_map` begin with it.
        vram_limit: in GiB, up to which weights are prepared; None for no limit.
        disk_map: where weights are read from that are on the disk.
        vram_config: the eight keys; see `enable_vram_management`.

    Raises:
        LadingError: the `vram_config` cannot be followed, or the layer computes something else than a linear one.
        CheckpointError: the disk map does not hold the weights.

    >>> import torch, lading
    >>> layer = lading.AutoWrappedLinear(torch.nn.Linear(4, 2), computation_device="cpu")
    >>> layer.load_lora(torch.ones(1, 4), torch.ones(2, 1), scale=0.5)
    >>> layer.scale_lora(0.25)
    >>> layer.clear_lora()
    """

    def __init__(
        self,
        module: torch.nn.Linear,
        *,
        name: str = "",
        vram_limit: float | str | None = None,
        disk_map: DiskMap | None = None,
        **vram_config: Any,
    ) -> None:
        if not computes_linearly(module):
            raise LadingError(
                f"{name or 'the layer'} is a {type(module).__name__}, which computes in its own way: replace it by "
                "AutoWrappedModule"
            )
        rules = parse_rules(vram_config)
        weights = manage_weights(name, [("", module)], rules, Residency(parse_limit(vram_limit)), disk_map)
        self.__dict__.update(module.__dict__)
        self.__dict__.update(weights=weights, lora=HotLoRA(module.in_features, module.out_features))
        watch_state_dict(self, weights)

    lora: HotLoRA

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch.nn.Linear names it
        tensors = self.weights.tensors()
        with self.weights.refetching(tensors):
            output = torch.nn.functional.linear(input, tensors["weight"], tensors.get("bias"))
        return self.lora(input, output)

    def load_lora(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0, name: str = "default") -> None:
        """Let the layer return `y + scale * (x @ a.T @ b.T)`; several adapters of different names add up.

        Args:
            a: of shape (rank, in_features).
            b: of shape (out_features, rank).
            name: an adapter that has it already is replaced.

        Raises:
            ShapeError: the matrices do not fit the layer, or each other.
        """
        place = self.weights.rules.computation
        self.lora.load(name, a.to(place.device, place.dtype), b.to(place.device, place.dtype), scale)

    def scale_lora(self, scale: float, name: str | None = None) -> None:
        """Give an adapter, or all of them, another scale.

        Raises:
            LadingError: there is no adapter of that name.
        """
        self.lora.rescale(scale, name)

    def clear_lora(self, name: str | None = None) -> None:
        """Take an adapter, or all of them, away.

        Raises:
            LadingError: there is no adapter of that name.
        """
        self.lora.clear(name)

    def extra_repr(self) -> str:
        adapters = f", LoRA {self.lora.scales}" if self.lora.scales else ""
        return f"{super().extra_repr()}, {self.state}{adapters}"

    def __getattr__(self, name: str) -> Any:
        weights = self.__dict__.get("weights")
        tensor = weights.tensor(name) if weights is not None else None
        return super().__getattr__(name) if tensor is None else tensor


def computes_linearly(module: torch.nn.Module) -> bool:
    """Tell whether a module computes what `torch.nn.Linear` does, and nothing else."""
    return isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward


def manage_weights(
    name: str,
    modules: Iterable[tuple[str, torch.nn.Module]],
    rules: Rules,
    residency: Residency,
    disk_map: DiskMap | None,
) -> LayerWeights:
    """Take care of what modules hold themselves, as the weights of one layer, and offload it.

    Args:
        name: of the layer in its model.
        modules: by their names in the layer.

    Raises:
        LadingError: weights would be on the disk, and there is no disk map.
        CheckpointError: the disk map does not hold them.
    """
    if rules.needs_disk and disk_map is None:
        raise LadingError(
            f"vram_config puts {name or 'the layer'} on 'disk', and there is no disk_map to read it from: give "
            "disk_map=lading.DiskMap(path), or load the model with load_model(..., vram_config=...)"
        )
    modules = list(modules)
    weights = LayerWeights(name, rules, residency)
    for path, module in modules:
        for attribute, parameter in list(module._parameters.items()):
            if parameter is not None:
                held = hold(parameter, joined_name(name, path, attribute), rules, disk_map)
                weights.add_parameter(joined_name(path, attribute), module._parameters, attribute, held)
        for attribute, buffer in module._buffers.items():
            if buffer is not None:
                persists = attribute not in module._non_persistent_buffers_set
                dtype = rules.computation.dtype if persists else None
                weights.add_buffer(joined_name(path, attribute), module._buffers, attribute, dtype)
    return weights


def require_unmoved(name: str, rules: Rules, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Do nothing where `to`, `half` or their like would leave weights as they compute.

    Raises:
        LadingError: they would move, or change their dtype.
    """
    probe = torch.empty(0, dtype=rules.computation.dtype, device=rules.device)
    changed = change(probe)
    if (changed.device, changed.dtype) != (probe.device, probe.dtype):
        raise LadingError(
            f"{name} is under VRAM management, {rules}: it cannot be moved to {changed.device} in {changed.dtype}: "
            "say so in its vram_config, and use onload() and offload()"
        )


def joined_name(*parts: str) -> str:
    return ".".join(part for part in parts if part)
