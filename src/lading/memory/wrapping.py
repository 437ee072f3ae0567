"""`enable_vram_management`: layers of a model replaced by ones that keep their weights where `vram_config` says."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lading.checkpoint import DiskMap
from lading.errors import LadingError
from lading.memory.layers import (
    AutoWrappedLinear,
    AutoWrappedModule,
    AutoWrappedNonRecurseModule,
    ReplaceableLayer,
    computes_linearly,
    joined_name,
    manage_weights,
    require_unmoved,
)
from lading.memory.merging import require_unmerged
from lading.memory.residency import Residency
from lading.memory.rules import Rules, parse_limit, parse_rules
from lading.memory.states import LayerWeights, watch_state_dict
from lading.memory.weights import keep_dtype, note_names, require_stored

_ENABLED = "vram_management_enabled"
_ENTRIES = ("encode", "decode")
"""Methods that are calls of a model, as `forward` is and as those are that its class defines itself."""

_KEPT = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")

LayerMap = Mapping[type[torch.nn.Module], Callable[..., torch.nn.Module]]
"""Class of a layer -> what makes the layer that replaces it."""


def enable_vram_management(
    model: torch.nn.Module,
    module_map: LayerMap,
    vram_config: Mapping[str, Any],
    vram_limit: float | str | None = None,
    disk_map: DiskMap | None = None,
) -> torch.nn.Module:
    """Replace layers of a model by ones whose weights are where and as `vram_config` says, state by state.

    The model is offloaded then. `onload()` and `offload()`, on the model or on one of its layers, change the state; a
    layer that is called while offloaded onloads itself. What `module_map` does not name is where it computes from when
    the model is onloaded until it is offloaded. Buffers stay in memory.

    `state_dict()` and `save_pretrained()` give what the offload state holds, whatever the state. On the disk, that is
    the checkpoint, in the dtype that computes. Weights that their class keeps in float32 are in float32 everywhere.

    Args:
        model: with its weights, or with parameters on the meta device where a `disk_map` has them.
        module_map: class of a layer -> `AutoWrappedLinear`, `AutoWrappedModule`, or what else makes the new layer; the
            first class that a layer is an instance of counts. One that names the model's own class replaces it whole.
        vram_config: `offload_`, `onload_`, `preparing_` and `computation_`, each with `dtype` and `device`; "disk" for
            weights that stay in their file, which `computation_` cannot be. What is left out is as in computation.
        vram_limit: in GiB, or such as "8GB": layers are prepared, in their order, while the weights that lading has on
            the device stay under it; decided at each call of the model. None prepares every layer that is called.
        disk_map: the model's checkpoint.

    Returns:
        The model, or what replaces it whole.

    Raises:
        LadingError: the `vram_config` cannot be followed, or the model is managed already.
        CheckpointError: the disk map does not hold the weights.

    >>> import torch, lading
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)).requires_grad_(False)
    >>> layers = {torch.nn.Linear: lading.AutoWrappedLinear, torch.nn.LayerNorm: lading.AutoWrappedModule}
    >>> storage = {"offload_dtype": "fp8", "onload_dtype": "fp8", "preparing_dtype": "fp8"}
    >>> computation = {"computation_dtype": "bfloat16", "computation_device": "cpu"}
    >>> model = lading.enable_vram_management(model, layers, {**storage, **computation}, vram_limit=1)
    >>> model(torch.ones(1, 8, dtype=torch.bfloat16)).dtype, model[0].state
    (torch.bfloat16, 'preparing')
    """
    if getattr(model, _ENABLED, False):
        raise LadingError(f"{type(model).__name__} is under VRAM management already: load it again for another config")
    rules = parse_rules(vram_config)
    residency = Residency(parse_limit(vram_limit))
    if rules.needs_disk and disk_map is None:
        raise LadingError(
            "vram_config puts weights on 'disk', and there is no disk_map to read them from: give "
            "disk_map=lading.DiskMap(path), or load the model with load_model(..., vram_config=...)"
        )
    note_names(model)
    if rules.offload.on_disk and disk_map is not None:
        require_stored(model, disk_map)
    _note_kept(model)
    options = {"vram_limit": vram_limit, "disk_map": disk_map}
    whole = _target(model, module_map)
    if whole is not None:
        replaced = whole(model, **rules.without_steps().vram_config(), name="", **options)
        if isinstance(replaced, AutoWrappedNonRecurseModule):
            _replace_children(model, "", module_map, {**rules.vram_config(), **options}, {})
    else:
        replaced = model
        _replace_children(model, "", module_map, {**rules.vram_config(), **options}, {})
    layers = [layer.weights for layer in replaced.modules() if isinstance(layer, ReplaceableLayer)]
    for weights in layers:
        weights.join(residency)
    rest = list(_rest(replaced, layers, rules.without_steps(), residency, disk_map))
    _attend(replaced, rest, residency, rules)
    return replaced


def _target(module: torch.nn.Module, module_map: LayerMap) -> Callable[..., torch.nn.Module] | None:
    """Return what replaces a module; a linear layer that computes in its own way keeps doing so."""
    target = next((target for source, target in module_map.items() if isinstance(module, source)), None)
    return AutoWrappedModule if target is AutoWrappedLinear and not computes_linearly(module) else target


def _replace_children(
    parent: torch.nn.Module,
    prefix: str,
    module_map: LayerMap,
    options: Mapping[str, Any],
    known: dict[int, torch.nn.Module],
) -> None:
    """Replace layers below a module; one that has several places is replaced by one."""
    for attribute, child in list(parent._modules.items()):
        if child is None:
            continue
        name = joined_name(prefix, attribute)
        if id(child) not in known:
            target = _target(child, module_map)
            known[id(child)] = child if target is None else target(child, name=name, **options)
            if target is None or isinstance(known[id(child)], AutoWrappedNonRecurseModule):
                _replace_children(child, name, module_map, options, known)
        parent._modules[attribute] = known[id(child)]


def _rest(
    model: torch.nn.Module,
    layers: list[LayerWeights],
    rules: Rules,
    residency: Residency,
    disk_map: DiskMap | None,
) -> Iterator[LayerWeights]:
    """Take care of what no replaced layer holds: it is there whenever its module is called."""
    managed = {place for weights in layers for place in weights.manages()}
    for name, module in model.named_modules():
        held = [(id(module._parameters), key) for key, value in module._parameters.items() if value is not None]
        held += [(id(module._buffers), key) for key, value in module._buffers.items() if value is not None]
        if held and managed.isdisjoint(held):
            weights = manage_weights(name, [("", module)], rules, residency, disk_map)
            watch_state_dict(module, weights)
            module.register_forward_pre_hook(lambda _module, _args, weights=weights: weights.ready(), prepend=True)
            yield weights


def _attend(model: torch.nn.Module, rest: list[LayerWeights], residency: Residency, rules: Rules) -> None:
    """Let calls of the model decide what is prepared and bring in the rest, and give it `onload` and `offload`."""

    def begin() -> None:
        attended = model_of()
        assert attended is not None  # it is called
        for part in attended.modules():
            if isinstance(getattr(part, "base_layer", None), ReplaceableLayer):
                require_unmerged(attended, part)
        residency.decide()
        for each in rest:
            each.ready()

    def apply(change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module | None:
        require_unmoved(type(model_of()).__name__, rules, change)
        return model_of()

    model_of = weakref.ref(model)
    model.register_forward_pre_hook(lambda _module, _args: begin(), prepend=True)
    own: dict[str, Any] = {_ENABLED: True, "_apply": apply, "onload": residency.onload, "offload": residency.offload}
    methods = {entry: getattr(type(model), entry, None) for entry in _ENTRIES}
    methods |= {name: method for name, method in vars(type(model)).items() if not name.startswith("_")}
    for name, method in methods.items():
        if inspect.isfunction(method) and name not in own and name != "forward":
            own[name] = _beginning(method, begin, model_of)
    model.__dict__.update(own)


def _beginning(
    method: Callable[..., Any], begin: Callable[[], None], model_of: weakref.ref[torch.nn.Module]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin()
        return method(model_of(), *args, **kwargs)

    return call


def _note_kept(model: torch.nn.Module) -> None:
    """Let parameters that diffusers or transformers classes keep in float32, and that are, stay so."""
    for prefix, module in model.named_modules():
        patterns = {name for attribute in _KEPT for name in getattr(module, attribute, None) or ()}
        for name, parameter in module.named_parameters(prefix) if patterns else ():
            if parameter.dtype == torch.float32 and any(f".{pattern}." in f".{name}." for pattern in patterns):
                keep_dtype(parameter)
