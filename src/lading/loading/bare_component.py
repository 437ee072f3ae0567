"""One component of a pipeline out of a bare file, which may hold several."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from lading.catalog import Candidate, Identification, identify_checkpoint
from lading.checkpoint import open_checkpoint
from lading.checkpoint.dtypes import named_dtype
from lading.errors import ComponentError
from lading.loading.chosen import find_network
from lading.loading.mapped import load_source
from lading.loading.network import is_diffusers_model
from lading.loading.recognised import likeliest
from lading.memory.limits import Limits


def load_bare_component(
    file: str | os.PathLike[str],
    name: str,
    torch_dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    limits: Limits | None,
) -> torch.nn.Module:
    """Load the network of a bare file that a pipeline calls by a name.

    Raises:
        ComponentError: the file holds no such network, or several may be meant.
        CheckpointError: names or shapes do not agree with the network's.
        MemoryLimitError: the limit is too small.
    """
    checkpoint = open_checkpoint(Path(file))
    chosen = find_network(_named(identify_checkpoint(checkpoint), name), checkpoint, None, False)
    assert chosen.source is not None  # a candidate's tensors always have a source
    if torch_dtype is not None:
        dtype: torch.dtype | None = named_dtype(torch_dtype)
    else:
        dtype = torch.float32 if is_diffusers_model(chosen.model_class) else None
    place = torch.device(device or "cpu")
    return load_source(name, chosen.model_class, chosen.source, chosen.config, dtype, place, limits)


def _named(found: Identification, name: str) -> Candidate:
    """The candidate of a component's name; "text_encoder_2" is also the one text encoder of a file."""
    file = ", ".join(map(str, found.files))
    usable = [one for one in found.candidates if one.model_class is not None]
    fitting = [one for one in usable if one.component == name]
    if not fitting and len({one.prefix for one in usable}) == 1:
        fitting = [one for one in usable if re.sub(r"_\d+$", "", one.component) == re.sub(r"_\d+$", "", name)]
    if not fitting:
        held = ", ".join(dict.fromkeys(one.component for one in usable)) or "nothing that is recognised"
        raise ComponentError(
            f"{file}: there is no component {name!r}: it holds {held}; networks alone are in bare files"
        )
    prefixes = {one.prefix for one in fitting}
    company = [one for one in usable if one.prefix not in prefixes]
    rivals = likeliest(fitting, company, file)
    if len(rivals) > 1:
        what = "; ".join(f"{one.model_class} under {one.prefix!r} as in {one.models or one.layout}" for one in rivals)
        raise ComponentError(
            f"{file}: {name!r} may be several networks: {what}: give load_model the candidate of "
            "lading.identify that is meant"
        )
    return rivals[0]
