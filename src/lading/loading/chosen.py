"""The network that a caller of `load_model` means: its class, its config, and where its tensors come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lading.catalog import Candidate, Identification, identify_checkpoint
from lading.catalog.construction import model_class as class_named
from lading.catalog.registry import architecture_of, find_architecture
from lading.checkpoint import Checkpoint
from lading.errors import IdentificationError, LadingError
from lading.loading.configs import read_config
from lading.loading.network import is_diffusers_model, is_transformers_model
from lading.loading.recognised import choose_candidate, merged_config, source_of, why_unknown
from lading.loading.source import Source


@dataclass(frozen=True)
class Chosen:
    """A network to load.

    Attributes:
        source: None where the library of the class finds its tensors in the checkpoint itself.
    """

    model_class: type[torch.nn.Module]
    config: Any
    checkpoint: Checkpoint
    source: Source | None = None


def find_network(
    wanted: type[torch.nn.Module] | Candidate | str | None, checkpoint: Checkpoint, config: Any, converts: bool
) -> Chosen:
    """Return the network that a class, a candidate or nothing at all names.

    Args:
        converts: the caller gives the tensors their names, so the class has to be given and no key map applies.

    Raises:
        IdentificationError: no network is recognised where no class is given, or several may be meant.
        CheckpointError: the file holds what the network's class cannot hold.
        LadingError: a converter without a class.
    """
    if isinstance(wanted, type):
        return _of_class(wanted, checkpoint, config, converts)
    if isinstance(wanted, str) and wanted != "auto":
        raise LadingError(
            f"load_model: {wanted!r} is no class: give the class itself, a candidate, or None to recognise it"
        )
    if converts:
        raise LadingError("load_model: a state_dict_converter needs the class that it converts for: give it")
    config = _read(config)
    found = identify_checkpoint(checkpoint)
    candidate = choose_candidate(found, None, config is not None) if not isinstance(wanted, Candidate) else wanted
    source = source_of(checkpoint, candidate, found.candidates)
    assert candidate.model_class is not None  # source_of refuses those without
    return Chosen(class_named(candidate.model_class), merged_config(candidate, config), checkpoint, source)


def find_config(model_class: type, config: Any, checkpoint: Checkpoint) -> Any:
    """Return the config that a caller gives, or the one beside the checkpoint; None where there is none."""
    config = _read(config)
    if config is None and (is_diffusers_model(model_class) or is_transformers_model(model_class)):
        beside = checkpoint.files[0].parent / "config.json"
        return read_config(beside) if beside.is_file() else None
    return config


def _of_class(model_class: type[torch.nn.Module], checkpoint: Checkpoint, config: Any, converts: bool) -> Chosen:
    known = find_config(model_class, config, checkpoint)
    catalogued = None if converts else architecture_of(model_class)
    name = catalogued[1].model_class if catalogued is not None else None
    found = _found_as(checkpoint, name) if name is not None else None
    if found is None:
        return Chosen(model_class, known, checkpoint)
    candidate = choose_candidate(found, name, known is not None)
    if known is None:
        known = dict(candidate.config)
    own = find_architecture(candidate.family, str(candidate.model_class)).own_layout
    if candidate.layout == own and not candidate.prefix:
        return Chosen(model_class, known, checkpoint)
    return Chosen(model_class, known, checkpoint, source_of(checkpoint, candidate, found.candidates))


def _found_as(checkpoint: Checkpoint, model_class: str) -> Identification | None:
    """What a checkpoint is, where a network of a class is in it; None where nothing is recognised.

    Raises:
        IdentificationError: what is recognised is something else.
    """
    found = identify_checkpoint(checkpoint)
    if any(one.model_class == model_class for one in found.candidates):
        return found
    others = [one for one in found.candidates if one.model_class is not None]
    as_this = [one for one in identify_checkpoint(checkpoint, model_class).candidates if one.config]
    if as_this:
        prefixes = {one.prefix for one in as_this}
        return replace(found, candidates=(*as_this, *(one for one in others if one.prefix not in prefixes)))
    if others:
        raise IdentificationError(f"{', '.join(map(str, checkpoint.files))}: {why_unknown(found, model_class)}")
    return None


def _read(config: Any) -> Any:
    if isinstance(config, (str, os.PathLike)):
        place = Path(config)
        return read_config(place / "config.json" if place.is_dir() else place)
    return dict(config) if isinstance(config, Mapping) else config
