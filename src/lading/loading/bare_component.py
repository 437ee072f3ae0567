"""Networks out of bare files, each under the name that a pipeline gives it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from lading.catalog import Candidate
from lading.catalog.construction import model_class as class_named
from lading.checkpoint.dtypes import named_dtype
from lading.errors import ComponentError, LadingError
from lading.loading.ingredients import BareFile, gather
from lading.loading.loaders import Loaded, LoadOptions
from lading.loading.managed import load_managed, vram_rules
from lading.loading.mapped import load_source
from lading.loading.matching import likely_assignments
from lading.loading.network import is_diffusers_model
from lading.loading.recognised import likeliest, source_of
from lading.loading.source import Source
from lading.memory.layers import AutoWrappedLinear, AutoWrappedModule
from lading.memory.wrapping import LayerMap

_LAYERS: LayerMap = {
    torch.nn.Linear: AutoWrappedLinear,
    torch.nn.Embedding: AutoWrappedModule,
    torch.nn.modules.conv._ConvNd: AutoWrappedModule,
}
"""What is replaced where a `ModelConfig` says where weights are: the layers that have nearly all of them."""


@dataclass(frozen=True)
class BareNetwork:
    """A network as `load_bare_network` takes it.

    Attributes:
        name: that its pipeline gives it.
        vram_limit: see `enable_vram_management`; of use where the file's `ModelConfig` says where its weights are.
    """

    name: str
    file: BareFile
    candidate: Candidate
    source: Source
    vram_limit: float | str | None = None


def find_bare_network(path: str | os.PathLike[str], name: str) -> BareNetwork:
    """Return the network of a bare file that a pipeline calls by a name.

    Raises:
        ComponentError: the file holds no such network, or several may be meant.
        CheckpointError: its tensors are not such that its class can hold them.
        IdentificationError: nothing in the file is recognised.
    """
    given = gather([path])
    (file,) = given.files
    casts = [one.parts[name] for one in likely_assignments(given) if name in one.parts]
    if len({(cast.part, cast.model_class, repr(cast.candidate.config)) for cast in casts}) == 1:
        return BareNetwork(name, file, casts[0].candidate, casts[0].source())
    candidate = _named(file, name)
    return BareNetwork(name, file, candidate, source_of(file.checkpoint, candidate, file.found.candidates))


def load_bare_network(network: BareNetwork, options: LoadOptions) -> Loaded:
    """Load a network of a bare file.

    Raises:
        CheckpointError: names or shapes do not agree with the network's.
        MemoryLimitError: the limit is too small.
    """
    assert network.candidate.model_class is not None  # it was chosen for its class
    model_class: Any = class_named(network.candidate.model_class)
    if options.torch_dtype is not None:
        dtype: torch.dtype | None = named_dtype(options.torch_dtype)
    else:
        dtype = torch.float32 if is_diffusers_model(model_class) else None
    place = torch.device(options.device or "cpu")
    config, files, vram_config = network.candidate.config, network.file.checkpoint.files, network.file.vram_config
    if not vram_config:
        model = load_source(network.name, model_class, network.source, config, dtype, place, options.limits)
        return Loaded(model, files)
    if options.limits is not None:
        raise LadingError(
            f"{network.file}: memory_limit and the {', '.join(vram_config)} of its ModelConfig both say where weights "
            "are: give one of them"
        )
    rules = vram_rules(_LAYERS, vram_config, network.vram_limit, dtype, place)
    assert rules is not None  # there is a module map
    managed = load_managed(network.name, model_class, network.source, config, rules, _LAYERS, network.vram_limit, None)
    assert managed is not None  # a source is loaded as it is
    return Loaded(managed, files)


def _named(file: BareFile, name: str) -> Candidate:
    """The candidate of a component's name; "text_encoder_2" is also the one text encoder of a file."""
    usable = [candidate for part in file.parts for candidate in part.candidates]
    fitting = [one for one in usable if one.component == name]
    if not fitting and len({one.prefix for one in usable}) == 1:
        fitting = [one for one in usable if re.sub(r"_\d+$", "", one.component) == re.sub(r"_\d+$", "", name)]
    if not fitting:
        held = ", ".join(dict.fromkeys(f"{one.component} ({one.model_class})" for one in usable))
        raise ComponentError(f"{file}: there is no component {name!r}: it holds {held}; bare files hold networks alone")
    prefixes = {one.prefix for one in fitting}
    rivals = likeliest(fitting, [one for one in usable if one.prefix not in prefixes], file.hints)
    if len(rivals) > 1:
        what = "; ".join(
            f"{one.model_class} under {one.prefix!r} as in {', '.join(one.models) or one.layout}" for one in rivals
        )
        raise ComponentError(
            f"{file}: {name!r} may be several networks: {what}: give load_model the candidate of "
            "lading.identify that is meant"
        )
    return rivals[0]
