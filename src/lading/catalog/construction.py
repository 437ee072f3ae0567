"""Networks of the catalog on the meta device: the judges of what recognition says, and the source of its tables.

This is the one module of the catalog that imports torch.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lading.catalog import families
from lading.catalog.architecture import Architecture, Config, Family, Inputs, InputSpec, ObjectSpec
from lading.catalog.change import Shape
from lading.catalog.identification import Candidate, Identification
from lading.catalog.lora_bases import LORA_BASES, LoraBase, modules_by_pattern, shipped_lora_bases
from lading.catalog.normalise import sort_content
from lading.catalog.registry import find_architecture, registered_class, shipped_family
from lading.catalog.shapes import Shapes, pattern_of
from lading.catalog.structure import SIGNATURES, Signature, name_pattern, shipped_signatures
from lading.checkpoint.inventory import Checkpoint
from lading.checkpoint.quantised import find_weights
from lading.errors import CheckpointError, IdentificationError


@dataclass(frozen=True)
class NetworkShapes:
    """What a network's state dict holds.

    Attributes:
        shapes: by name.
        tied: names whose tensor another name holds too -> all names of that tensor.
    """

    shapes: Mapping[str, Shape]
    tied: Mapping[str, tuple[str, ...]]


def model_class(name: str) -> type[torch.nn.Module]:
    """Return a class by library and name, such as "diffusers.FluxTransformer2DModel"; or one that was registered.

    Raises:
        IdentificationError: the library is not installed or has no such class.
    """
    registered = registered_class(name)
    return found_in_library(name) if registered is None else registered


def found_in_library(name: str) -> Any:
    """Return a class or function by library and name.

    Raises:
        IdentificationError: the library is not installed or has nothing of this name.
    """
    library, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(library), attribute)
    except (ImportError, AttributeError) as error:
        raise IdentificationError(f"{name}: this class is not installed ({error}): update {library}") from None


def build_on_meta(name: str, config: Config) -> torch.nn.Module:
    """Build a network without memory.

    Raises:
        IdentificationError: there is no such class, or it does not take this config.
    """
    network = model_class(name)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what its constructor calls is the library's business
            config_class = getattr(network, "config_class", None)
            if config_class is None:
                return network(**config)
            return network(config_class.from_dict(dict(config)))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        raise IdentificationError(f"{name} cannot be built from its config: {error}") from error


def make_inputs(inputs: Inputs, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Make the arguments of a forward: tensors on the meta device but for those whose values count, on the CPU.

    Args:
        dtype: of the floating-point tensors, instead of what their specs say.
    """
    return {name: _made(value, dtype) for name, value in inputs.items()}


def _made(tree: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(tree, InputSpec):
        wanted: torch.dtype = getattr(torch, tree.dtype)
        if dtype is not None and wanted.is_floating_point:
            wanted = dtype
        if tree.values is not None:
            return torch.tensor(tree.values, dtype=wanted)
        return torch.empty(tree.shape, dtype=wanted, device="meta")
    if isinstance(tree, ObjectSpec):
        return found_in_library(tree.made_by)(**{name: _made(value, dtype) for name, value in tree.arguments.items()})
    if isinstance(tree, dict):
        return {key: _made(value, dtype) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_made(value, dtype) for value in tree]
    if isinstance(tree, tuple) and any(isinstance(value, InputSpec) for value in tree):
        return tuple(_made(value, dtype) for value in tree)
    return tree


def network_shapes(network: torch.nn.Module) -> NetworkShapes:
    """Return the names and shapes of a network's state dict."""
    state = network.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for key, tensor in state.items():
        names.setdefault(id(tensor), []).append(key)
    tied = {key: tuple(group) for group in names.values() if len(group) > 1 for key in group}
    return NetworkShapes({key: tuple(tensor.shape) for key, tensor in state.items()}, tied)


def signatures_of(family: Family) -> list[Signature]:
    """Make a family's signatures from its published configs and further examples."""
    return [signature for architecture in family.architectures for signature in _signatures(family.name, architecture)]


def _signatures(family: str, architecture: Architecture) -> list[Signature]:
    configs: list[dict[str, Any]] = []
    for config in (*architecture.published.values(), *architecture.examples):
        if dict(config) not in configs:
            configs.append(dict(config))
    examples = [network_shapes(build_on_meta(architecture.model_class, config)) for config in configs]
    omitted = name_pattern(architecture.tied)
    result = []
    for layout in (architecture.own_layout, *architecture.layouts):
        found: list[frozenset[str]] = []
        spare: set[str] = set()
        for example in examples:
            key_map = architecture.key_map(layout, example.shapes)
            shapes = dict(example.shapes) if key_map is None else key_map.inverse.shapes(example.shapes)
            patterns = {name: f"{pattern_of(name)}:{len(shape)}" for name, shape in shapes.items()}
            found.append(frozenset(patterns.values()))
            own = {name: (name,) for name in shapes} if key_map is None else key_map.names(shapes)
            for name, sources in own.items():
                if name in example.tied or (omitted is not None and omitted.fullmatch(name)):
                    spare.update(patterns[source] for source in sources)
        required = frozenset.intersection(*found) - spare
        optional = frozenset.union(*found) - required
        beside = architecture.beside
        result.append(Signature(family, architecture.model_class, layout, required, optional, beside))
    return result


def verify(architecture: Architecture, config: Config, layout: str, shapes: Mapping[str, Shape]) -> list[str]:
    """Build the class on the meta device and return every name and shape in which the file differs.

    Args:
        shapes: of the file, by name without the prefix of the part.
    """
    try:
        network = network_shapes(build_on_meta(architecture.model_class, config))
        key_map = architecture.key_map(layout, shapes)
        mapped = dict(shapes) if key_map is None else key_map.all_shapes(shapes)
    except (IdentificationError, CheckpointError) as error:
        return [str(error)]
    beside = name_pattern(architecture.beside)
    extras = architecture.extras(Shapes(mapped))
    faults = [
        f"extra: {name} {shape}"
        for name, shape in mapped.items()
        if name not in network.shapes and not (beside is not None and beside.fullmatch(name))
    ]
    for name, shape in network.shapes.items():
        if name in extras:
            continue
        if name not in mapped:
            if not any(twin in mapped for twin in network.tied.get(name, ())):
                faults.append(f"missing: {name} {shape}")
        elif mapped[name] != shape:
            faults.append(f"mis-shaped: {name} is {mapped[name]}, {architecture.model_class} makes {shape}")
    return faults


def verify_candidates(checkpoint: Checkpoint, identification: Identification) -> dict[Candidate, list[str]]:
    """Verify every candidate that has a class; see `verify`.

    Returns:
        Candidate -> the names and shapes in which the file differs from the class; none is agreement.
    """
    content = sort_content({name: info.shape for name, info in find_weights(checkpoint).tensors.items()})
    prefixes = {candidate.prefix for candidate in identification.candidates}
    result = {}
    for candidate in identification.candidates:
        if candidate.model_class is None:
            continue
        longer = tuple(one for one in prefixes if len(one) > len(candidate.prefix))
        whole = {name: shape for name, shape in content.whole.items() if not (longer and name.startswith(longer))}
        shapes = Shapes(whole).under(candidate.prefix)
        architecture = find_architecture(candidate.family, candidate.model_class)
        result[candidate] = verify(architecture, candidate.config, candidate.layout, shapes)
    return result


def lora_bases_of(family: Family) -> list[LoraBase]:
    """Make the bases of LoRAs that a family's published configs are, in every layout that a LoRA may have."""
    adapted = [architecture for architecture in family.architectures if architecture.lora_targets]
    return [base for architecture in adapted for base in _lora_bases(family.name, architecture)]


def _lora_bases(family: str, architecture: Architecture) -> list[LoraBase]:
    groups: dict[tuple[str, tuple[tuple[str, Shape], ...]], list[str]] = {}
    configs = [*architecture.published.items()] or [("", config) for config in architecture.examples]
    for name, config in configs:
        shapes = network_shapes(build_on_meta(architecture.model_class, config)).shapes
        for layout in (architecture.own_layout, *architecture.layouts, *architecture.lora_layouts):
            key_map = architecture.key_map(layout, shapes)
            in_file = shapes if key_map is None else key_map.inverse.shapes(shapes)
            weights = (
                (tensor.removesuffix(".weight"), shape)
                for tensor, shape in in_file.items()
                if tensor.endswith(".weight") and len(shape) >= 2
            )
            groups.setdefault((layout, tuple(weights)), []).extend([name] if name else [])
    return [
        LoraBase(
            family,
            architecture.component,
            architecture.model_class,
            layout,
            tuple(names),
            modules_by_pattern(weights),
        )
        for (layout, weights), names in groups.items()
        if weights
    ]


def write_shipped(names: Iterable[str] = ()) -> None:
    """Make `signatures.json` and `lora_bases.json` anew from these families, or from all; run it after one changed."""
    shipped = sorted(one.name for one in pkgutil.iter_modules(families.__path__) if not one.name.startswith("_"))
    wanted = set(names) or set(shipped)
    made = [shipped_family(name) for name in sorted(wanted)]
    signatures = [one for one in shipped_signatures() if one.family in shipped and one.family not in wanted]
    signatures += [signature for family in made for signature in signatures_of(family)]
    signatures.sort(key=lambda one: shipped.index(one.family))
    SIGNATURES.write_text(json.dumps([signature.to_json() for signature in signatures], indent=0) + "\n")
    bases = [one for one in shipped_lora_bases() if one.family in shipped and one.family not in wanted]
    bases += [base for family in made for base in lora_bases_of(family)]
    bases.sort(key=lambda one: shipped.index(one.family))
    LORA_BASES.write_text("[\n" + ",\n".join(json.dumps(base.to_json()) for base in bases) + "\n]\n")


if __name__ == "__main__":
    write_shipped(sys.argv[1:])
