"""LoRA files of any dialect to pairs of matrices by the network's own names.

diffusers' converters know many dialects, and silently drop what they do not know: blocks beyond the published depth,
scales of some layers, biases, whole modules. So every tensor that they return is followed back to the file, and one
that is lost is a fault. Where the catalog knows the names, its key maps say where each module goes, at any depth and
width; what diffusers makes of it has to mean the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch

from lading.catalog.change import AddAxes, Change, DropAxes, Same, Shape, Split, SplitHeads, SwapHalves
from lading.catalog.lora import LoraSettings
from lading.catalog.lora_bases import trimmed
from lading.catalog.lora_names import DENOISER, LoraContent, LoraKey, parse_lora_key
from lading.loading.lora_networks import AdaptedNetwork, Layout, LoraTarget, Place
from lading.loading.traced_tensors import TracedTensor

Tensors = Mapping[str, torch.Tensor]
Settings = Mapping[str, LoraSettings]

_PAIR = frozenset(("down", "up"))
_PARTS = frozenset((*_PAIR, "alpha", "up_bias", "magnitude"))
_NO_PAIR = "no pair of matrices"
_DENOISERS = ("transformer", "unet")
_ROUNDING = 1 / 20
"""More than numbers of bfloat16 lose when scales are multiplied into them; less than a lost scale or swapped rows."""


@dataclass(frozen=True)
class Fault:
    """A tensor of the file that has no place.

    Attributes:
        layer: that is there, in another size; "" where none is.
    """

    name: str
    reason: str
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Pair:
    """What a LoRA adds to one layer: `alpha / rank * up @ down`.

    Attributes:
        down: of shape (rank, in_features); for a convolution (rank, in_channels, *kernel).
        up: of shape (out_features, rank); for a convolution with axes of size one after that.
        alpha: None for that of the rank, a scale of 1.
        up_bias: added to what `up` returns.
        magnitude: DoRA's, one number for each row of the weight.
        sources: the file's names for them.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None
    up_bias: torch.Tensor | None
    magnitude: torch.Tensor | None
    sources: tuple[str, ...]

    @property
    def rank(self) -> int:
        """Rows of `down`, columns of `up`."""
        return self.down.shape[0]

    @property
    def weight_shape(self) -> Shape:
        """Of the weight that it is added to, without last axes of size one."""
        return trimmed((self.up.shape[0], *self.down.shape[1:]))

    def of_a_probe(self) -> torch.Tensor:
        """Return what it adds to what the layer makes of one random vector, to compare pairs by."""
        down, up = self.down.flatten(1).float(), self.up.flatten(1).float()
        probe = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0))
        return (1 if self.alpha is None else self.alpha / self.rank) * (up @ (down @ probe))

    def faults(self, reason: str, layer: str = "") -> list[Fault]:
        """Return a fault for each of its sources."""
        return [Fault(name, reason, layer) for name in self.sources]


Pairs = Mapping[tuple[str, bool], Pair]
"""A module's name in some layout, and whether that is flat -> what is added to it."""


@dataclass
class Conversion:
    """A LoRA in the names of the networks that it is for.

    Attributes:
        pairs: component -> layer -> what is added to it.
        whole: component -> parameter -> what replaces it, as in control LoRAs.
        faults: what of the file has no place; where there is one, nothing is to be loaded.
        unused: tensors without a place that would change nothing, as they are zero.
    """

    pairs: dict[str, dict[str, Pair]] = field(default_factory=dict)
    whole: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unused: tuple[str, ...] = ()


def convert(target: LoraTarget, content: LoraContent, read: Callable[[], Tensors], settings: Settings) -> Conversion:
    """Convert a LoRA for a target; without faults, every tensor of the file has its place.

    Args:
        read: reads the file's tensors; anew each time, as converters may change them.
        settings: by component; "" for those that are not named.
    """
    tensors = read()
    named = _without_zeros(by_names(target, content, tensors, settings), content, tensors)
    if target.loader is None:
        return named
    theirs = _without_zeros(by_diffusers(target, content, read(), settings), content, tensors)
    if not named.faults:
        return theirs if not theirs.faults and _mean_the_same(named, theirs) else named
    return theirs if len(theirs.faults) < len(named.faults) else named


def by_names(target: LoraTarget, content: LoraContent, tensors: Tensors, settings: Settings) -> Conversion:
    """Convert by the names of modules alone, in whatever layout of the catalog they are."""
    found = Conversion(faults=[Fault(name, "no part of an adapter") for name in content.rest])
    loose: dict[str, dict[tuple[str, bool], Pair]] = {}
    alphas = _alphas(content, tensors)
    for (component, module), held in content.modules.items():
        if not _PAIR <= held.names.keys() <= _PARTS:
            found.faults += [Fault(name, _NO_PAIR) for name in held.names.values()]
            continue
        parts = {part: tensors[name] for part, name in held.names.items()}
        pair = _pair(parts, alphas.get(held.names["down"]), tuple(held.names.values()))
        loose.setdefault(component, {})[module, held.is_flat] = pair
    for component, pairs in loose.items():
        _place(target, component or _likely_component(target, pairs), pairs, settings, found)
    return found


def by_diffusers(target: LoraTarget, content: LoraContent, tensors: Tensors, settings: Settings) -> Conversion:
    """Convert with `lora_state_dict` of the pipeline's class in diffusers."""
    read: set[str] = set()
    own = _are_own_names(target, content)
    traced = {
        _as_diffusers_reads(name, content.keys.get(name), target, own): TracedTensor.of(tensor, name, read)
        for name, tensor in tensors.items()
    }
    try:
        converted, is_unscaled = _lora_state_dict(target, traced)
    except Exception as error:  # noqa: BLE001 - a converter may fail in any way at what it does not know
        return Conversion(faults=[Fault(name, f"diffusers cannot convert it: {error}") for name in tensors])
    alphas = _alphas(content, tensors) if is_unscaled else {}
    found = Conversion()
    loose: dict[str, dict[str, dict[str, TracedTensor]]] = {}
    for name, tensor in converted.items():
        head, key = name.partition(".")[0], parse_lora_key(name)
        component = key.component if key is not None and key.component else head
        if key is None:
            _replace(target, DENOISER if head in _DENOISERS else head, name.removeprefix(f"{head}."), tensor, found)
        else:
            module = key.module if key.component else key.module.removeprefix(f"{head}.")
            loose.setdefault(component, {}).setdefault(module, {})[key.part] = tensor
    for component, modules in loose.items():
        broken = [parts for parts in modules.values() if not parts.keys() >= _PAIR]
        found.faults += [
            Fault(name, _NO_PAIR) for name in _sources(*(tensor for one in broken for tensor in one.values()))
        ]
        pairs = {(name, False): _traced_pair(parts, alphas) for name, parts in modules.items() if parts.keys() >= _PAIR}
        _place(target, component, pairs, settings, found)
    used = read.union(*(tensor.sources for tensor in converted.values()))
    if is_unscaled:
        used.update(held.names.get("alpha", "") for held in content.modules.values() if held.names.get("down") in used)
    found.faults += [Fault(name, "diffusers' converter drops it") for name in tensors if name not in used]
    return found


def _mean_the_same(one: Conversion, other: Conversion) -> bool:
    """Whether two conversions add the same to the same layers, but for rounding."""
    if one.whole or other.whole or one.unused != other.unused or one.pairs.keys() != other.pairs.keys():
        return False
    return all(
        pairs.keys() == other.pairs[component].keys()
        and all(_adds_the_same(pair, other.pairs[component][layer]) for layer, pair in pairs.items())
        for component, pairs in one.pairs.items()
    )


def _adds_the_same(one: Pair, other: Pair) -> bool:
    extras = ((one.up_bias, other.up_bias), (one.magnitude, other.magnitude))
    if any(
        (a is None) != (b is None) or (a is not None and b is not None and not torch.equal(a, b)) for a, b in extras
    ):
        return False
    if one.weight_shape != other.weight_shape:
        return False
    mine, theirs = one.of_a_probe(), other.of_a_probe()
    return bool((mine - theirs).norm() <= _ROUNDING * mine.norm())


def _replace(target: LoraTarget, component: str, parameter: str, tensor: TracedTensor, found: Conversion) -> None:
    """Note what replaces a parameter of a network."""
    network = target.networks.get(component)
    if network is not None and network.parameters.get(parameter) == tuple(tensor.shape):
        found.whole.setdefault(component, {})[parameter] = tensor.plain()
    else:
        reason = f"{target.label} has no such parameter {parameter}"
        found.faults += [Fault(name, reason) for name in _sources(tensor)]


def _sources(*tensors: TracedTensor) -> tuple[str, ...]:
    return tuple(sorted({source for tensor in tensors for source in tensor.sources}))


def _pair(parts: Tensors, alpha: float | None, sources: tuple[str, ...]) -> Pair:
    return Pair(parts["down"], parts["up"], alpha, parts.get("up_bias"), parts.get("magnitude"), sources)


def _traced_pair(parts: Mapping[str, TracedTensor], alphas: Mapping[str, float]) -> Pair:
    sources = _sources(*parts.values())
    stated = [float(parts["alpha"])] if "alpha" in parts else [alphas[one] for one in sources if one in alphas]
    return _pair({part: tensor.plain() for part, tensor in parts.items()}, stated[0] if stated else None, sources)


def _alphas(content: LoraContent, tensors: Tensors) -> dict[str, float]:
    """The alphas that the file states, by the name of the `down` that they scale."""
    return {
        held.names["down"]: float(tensors[held.names["alpha"]].item())
        for held in content.modules.values()
        if {"down", "alpha"} <= held.names.keys()
    }


def _without_zeros(found: Conversion, content: LoraContent, tensors: Tensors) -> Conversion:
    """Let tensors be without a place that change nothing, as trainers write them for layers that they did not train."""
    zero = {name for name in {fault.name for fault in found.faults} if not tensors[_deciding(name, content)].any()}
    found.faults = [fault for fault in found.faults if fault.name not in zero]
    found.unused = tuple(name for name in tensors if name in zero)
    return found


def _deciding(name: str, content: LoraContent) -> str:
    """Which tensor tells whether this one changes anything: of a pair, `up`."""
    key = content.keys.get(name)
    if key is None:
        return name
    return content.modules[key.component, key.module].names.get("up", name)


def _are_own_names(target: LoraTarget, content: LoraContent) -> bool:
    """Whether the modules without a prefix are called as the denoiser calls its layers."""
    network = target.networks.get(DENOISER)
    bare = [module for component, module in content.modules if component in ("", DENOISER)]
    return network is not None and all(module in network.layers for module in bare)


def _as_diffusers_reads(name: str, key: LoraKey | None, target: LoraTarget, own: bool) -> str:
    """A file's name as diffusers' converters expect it of the dialect."""
    if key is None or key.is_flat:
        return name
    if key.dialect == "diffsynth":  # PEFT's names in memory, with that of the adapter in them
        parts = name.split(".")
        name = ".".join((*parts[:-2], parts[-1]))
    if key.component not in ("", DENOISER):
        return name
    if own:
        module = name[name.index(key.module) :] if key.module in name else name
        return f"{target.denoiser}.{module}"
    return f"diffusion_model.{name}" if key.dialect == "diffsynth" and not key.component else name


def _lora_state_dict(target: LoraTarget, traced: Mapping[str, TracedTensor]) -> tuple[dict[str, TracedTensor], bool]:
    """Call the converter.

    Returns:
        What it made, and whether alphas are still to be applied; else they are in the matrices.
    """
    options: dict[str, Any] = {}
    if "return_alphas" in inspect.signature(target.loader.lora_state_dict).parameters:
        options["return_alphas"] = True
    network = target.networks.get(DENOISER)
    if network is not None and hasattr(target.loader, "unet_name"):
        options["unet_config"] = network.module.config
    made = target.loader.lora_state_dict(dict(traced), **options)
    converted, alphas = made if isinstance(made, tuple) else (made, None)
    return converted, bool(alphas)


def _likely_component(target: LoraTarget, pairs: Pairs) -> str:
    """The network that modules are of whose names do not say it: the one that has most of them."""
    counts = {
        component: max(_known(layout, pairs) for layout in network.layouts.values())
        for component, network in target.networks.items()
    }
    return max(counts, key=lambda component: counts[component], default=DENOISER)


def _known(layout: Layout, pairs: Pairs) -> int:
    return sum(layout.find(*module) is not None for module in pairs)


def _place(
    target: LoraTarget,
    component: str,
    pairs: Pairs,
    settings: Settings,
    found: Conversion,
) -> None:
    """Find the layer of each pair, and take it apart where the layer is one of several."""
    network = target.networks.get(component)
    if network is None:
        found.faults += _faults(pairs, f"{target.label} has no {component}")
        return
    layouts = _layouts_of(network, pairs)
    if len(layouts) > 1:
        found.faults += _faults(pairs, f"{network.label} has layers of these names in several layouts")
        return
    stated = settings.get(component, settings.get("", LoraSettings()))
    placed = found.pairs.setdefault(component, {})
    for module, pair in pairs.items():
        place = layouts[0].find(*module)
        if place is None:
            found.faults += pair.faults(f"{network.label} has no layer {module[0]} that takes one")
            continue
        first, broken = place.layers[0], _why_broken(pair)
        if not broken and pair.weight_shape != trimmed(place.shape):
            found.faults += pair.faults(f"for {pair.weight_shape}, and {first} has {place.shape}", first)
            continue
        pieces = None if broken else _changed(pair, place.change)
        if pieces is None:
            found.faults += pair.faults(broken or f"{first} is made of it in a way that no pair can follow")
            continue
        for layer, piece in zip(place.layers, pieces, strict=True):
            if layer in placed:
                found.faults += pair.faults(f"{layer} has another pair already")
            else:
                alpha = piece.alpha if piece.alpha is not None else stated.alpha_of(layer)
                placed[layer] = _fitted(replace(piece, alpha=alpha), network.layers[layer])


def _faults(pairs: Pairs, reason: str) -> list[Fault]:
    return [fault for pair in pairs.values() for fault in pair.faults(reason)]


def _layouts_of(network: AdaptedNetwork, pairs: Pairs) -> list[Layout]:
    """The layouts that have all of these names, one of those that mean the same by them; else the one with most."""
    found: dict[tuple[Place | None, ...], Layout] = {}
    for layout in network.layouts.values():
        found.setdefault(tuple(layout.find(*module) for module in pairs), layout)
    whole = [layout for places, layout in found.items() if None not in places]
    return whole or [max(found.values(), key=lambda layout: _known(layout, pairs))]


def _changed(pair: Pair, change: Change) -> tuple[Pair, ...] | None:
    """Do to a pair what a key map does to the weight; None for what has no such thing as a pair for its result."""
    if isinstance(change, (Same, DropAxes, AddAxes)):
        return (pair,)
    of_rows = isinstance(change, SplitHeads) or (isinstance(change, (Split, SwapHalves)) and change.dim == 0)
    if not of_rows or pair.magnitude is not None:
        return None
    biases = change.tensors([pair.up_bias]) if pair.up_bias is not None else None
    return tuple(
        replace(pair, up=up, up_bias=biases[number] if biases is not None else None)
        for number, up in enumerate(change.tensors([pair.up]))
    )


def _why_broken(pair: Pair) -> str:
    """Return why a pair can be added to no weight; "" where it can."""
    if pair.down.ndim < 2 or pair.up.ndim < 2 or pair.rank != pair.up.shape[1] or not pair.rank:
        return f"{tuple(pair.down.shape)} and {tuple(pair.up.shape)} are no pair of matrices"
    if pair.alpha is not None and not isfinite(pair.alpha):
        return f"an alpha of {pair.alpha}"
    magnitude = pair.magnitude
    if magnitude is None:
        return ""
    of_columns = magnitude.ndim == 2 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    if of_columns or magnitude.numel() != pair.up.shape[0]:
        return f"a magnitude of {tuple(magnitude.shape)}, where lading takes one number for each row of the weight"
    return ""


def _fitted(pair: Pair, shape: Shape) -> Pair:
    """Return a pair with the axes that a layer of this shape wants."""
    ones = (1,) * (len(shape) - 2)
    magnitude = pair.magnitude
    if magnitude is not None:
        magnitude = magnitude.reshape(1, shape[0], *ones) if ones else magnitude.reshape(-1)
    down, up = pair.down.reshape(pair.rank, *shape[1:]), pair.up.reshape(shape[0], pair.rank, *ones)
    return replace(pair, down=down, up=up, magnitude=magnitude)
