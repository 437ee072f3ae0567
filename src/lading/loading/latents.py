"""The latent format of a model, from its configs or the catalog's entry: no weight is read, and no network asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lading.catalog import identify, known_families
from lading.catalog.architecture import Config
from lading.errors import ComponentError
from lading.hub import shipped_model
from lading.hub.snapshot import SHIPPED
from lading.latents import LatentFormat, LatentNumbers, make_latent_format
from lading.loading.configs import read_config, read_model_index

_AUTOENCODERS = ("vae", "video_vae")


@dataclass(frozen=True)
class Network:
    """A part of a pipeline: its class, as the catalog writes it, and its config."""

    model_class: str
    config: Config


def latent_format(model: str | os.PathLike[str]) -> LatentFormat:
    """Return how a model's latents follow from pixels.

    Args:
        model: a folder in the diffusers layout, a checkpoint file, "shapes", or the hub id of a published model that
            the catalog knows. The hub is not asked.

    Raises:
        ComponentError: there is no such model, or no denoiser in it that the catalog knows.
        ShapeError: its denoiser and its autoencoder disagree.

    >>> import lading
    >>> str(lading.latent_format("shapes").shape(batch=1, height=64, width=64))
    'latent  batch 1  channels 4  height 8  width 8'
    """
    path = shipped_model() if model == SHIPPED else Path(model)
    if path.is_dir():
        networks = _networks_of_folder(path)
    elif path.is_file():
        networks = _networks_of_file(path)
    else:
        networks = _networks_of_id(os.fspath(model))
    found = format_of_networks(networks)
    if found is not None:
        return found
    classes = ", ".join(network.model_class for network in networks.values()) or "no network"
    raise ComponentError(
        f"{os.fspath(model)}: holds {classes}, and the catalog knows the latents of none of them: "
        "name a model with a denoiser that it knows, or register its architecture"
    )


def format_of_networks(networks: Mapping[str, Network]) -> LatentFormat | None:
    """Return the latent format of a pipeline's networks; None where the catalog knows no denoiser among them.

    Raises:
        ShapeError: its denoiser and its autoencoder disagree.
    """
    for network in networks.values():
        numbers = _numbers(network.model_class)
        if numbers is not None:
            autoencoder = next((networks[name].config for name in _AUTOENCODERS if name in networks), None)
            audio = networks["audio_vae"].config if "audio_vae" in networks else None
            return make_latent_format(numbers, network.config, autoencoder, audio)
    return None


def _numbers(model_class: str) -> LatentNumbers | None:
    for family in known_families():
        for architecture in family.architectures:
            if architecture.model_class == model_class and architecture.latent is not None:
                return architecture.latent
    return None


def _networks_of_folder(folder: Path) -> dict[str, Network]:
    networks = {}
    for name, (library, class_name) in read_model_index(folder).items():
        config = folder / name / "config.json"
        if config.is_file():
            networks[name] = Network(f"{library}.{class_name}", read_config(config))
    return networks


def _networks_of_file(file: Path) -> dict[str, Network]:
    """What a checkpoint holds, as far as its header tells it; of several candidates for a part, the first."""
    networks: dict[str, Network] = {}
    for candidate in identify(file).candidates:
        if candidate.model_class is not None and candidate.component not in networks:
            networks[candidate.component] = Network(candidate.model_class, candidate.config)
    return networks


def _networks_of_id(model_id: str) -> dict[str, Network]:
    """What was published under an id; an autoencoder that was published elsewhere is as the family states it."""
    published: dict[str, dict[str, Network]] = {}
    for family in known_families():
        for architecture in family.architectures:
            for name, config in architecture.published.items():
                parts = published.setdefault(name, {})
                parts.setdefault(architecture.component, Network(architecture.model_class, config))
    if model_id not in published:
        near = get_close_matches(model_id, _with_latents(published), n=5, cutoff=0.3)
        raise ComponentError(
            f"{model_id}: no such folder or file, and no model of this id in the catalog: "
            f"give a folder in the diffusers layout{', or one of ' if near else ''}{', '.join(near)}"
        )
    return published[model_id]


def _with_latents(published: Mapping[str, Mapping[str, Network]]) -> list[str]:
    return [name for name, parts in published.items() if any(_numbers(part.model_class) for part in parts.values())]
