"""The networks of a pipeline, each with its class and its config: from a folder, a file, a hub or the catalog.

No weight is read. Plain Python.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lading.catalog import component_config, find_repository, identify, known_families
from lading.catalog.architecture import Config
from lading.catalog.identification import Candidate
from lading.checkpoint import Checkpoint, open_checkpoint
from lading.checkpoint.files import find_in_folder
from lading.errors import CheckpointError, ComponentError, DownloadError, IdentificationError
from lading.hub import open_remote, shipped_model
from lading.hub.remote import RemoteModel
from lading.hub.repository import is_model_id, skips_download
from lading.hub.snapshot import SHIPPED
from lading.latents import LatentFormat, LatentNumbers, make_latent_format
from lading.loading.configs import read_config, read_index

Place: TypeAlias = Literal["folder", "file", "catalog", "hub"]

AUTOENCODERS = ("vae", "video_vae")


@dataclass(frozen=True)
class Network:
    """A network of a pipeline.

    Attributes:
        model_class: library and class, such as "diffusers.FluxTransformer2DModel".
        checkpoint: reads its headers, where there are any.
        candidate: which network of the checkpoint it is, where a file may hold several.
    """

    model_class: str
    config: Config
    checkpoint: Callable[[], Checkpoint | None] = lambda: None
    candidate: Candidate | None = None


@dataclass(frozen=True)
class Blueprint:
    """What a pipeline is made of.

    Attributes:
        name: of the model, as it was given.
        pipeline_class: such as "diffusers.FluxPipeline"; None where nothing says it.
        networks: by the pipeline's names for them, in its order.
        place: where it was found.
        settings: the pipeline's own entries in `model_index.json`.
    """

    name: str
    pipeline_class: str | None
    networks: Mapping[str, Network]
    place: Place
    settings: Config

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Names of the networks that denoise, as the catalog knows their latents."""
        return tuple(name for name, network in self.networks.items() if latent_numbers(network.model_class) is not None)

    def latent_format(self) -> LatentFormat:
        """Return how the latents follow from pixels.

        Raises:
            ComponentError: there is no denoiser that the catalog knows.
            ShapeError: the denoiser and the autoencoder disagree.
        """
        for name in self.denoisers:
            numbers = latent_numbers(self.networks[name].model_class)
            assert numbers is not None
            autoencoder = next((self.networks[name].config for name in AUTOENCODERS if name in self.networks), None)
            audio = self.networks["audio_vae"].config if "audio_vae" in self.networks else None
            return make_latent_format(numbers, self.networks[name].config, autoencoder, audio)
        classes = ", ".join(network.model_class for network in self.networks.values()) or "no network"
        raise ComponentError(
            f"{self.name}: holds {classes}, and the catalog knows the latents of none of them: "
            "name a model with a denoiser that it knows, or register its architecture"
        )


def read_blueprint(
    model: str | os.PathLike[str],
    remote: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
) -> Blueprint:
    """Find out what a model is made of.

    Args:
        model: a folder in the diffusers layout, a checkpoint file, "shapes", or the id of a model: one that the catalog
            knows, else one on the Hugging Face Hub.
        remote: whether the hub may be asked.
        revision: branch, tag or commit on the hub.
        variant: such as "fp16" for weights in "model.fp16.safetensors".
        token: for private and gated models.

    Raises:
        ComponentError: there is no such model.
        DownloadError: the hub could not give it.
        CheckpointError: a file is damaged.
    """
    name = os.fspath(model)
    path = shipped_model() if model == SHIPPED else Path(model)
    if path.is_dir():
        return _of_folder(name, path, variant)
    if path.is_file():
        return _of_file(name, path)
    known = _of_catalog(name)
    if known is not None and revision is None:
        return known
    if remote and is_model_id(name) and not skips_download():
        try:
            return _of_hub(name, open_remote(name, revision, variant, token))
        except DownloadError as error:
            raise DownloadError(f"{error}; without the hub, lading knows {', '.join(_like(name))}") from None
    offline = ", and remote requests are turned off" if remote and is_model_id(name) else ""
    raise ComponentError(
        f"{name}: no such folder or file, and no model of this id in the catalog{offline}: "
        f"give a folder in the diffusers layout, or one of {', '.join(_like(name))}"
    )


def latent_numbers(model_class: str) -> LatentNumbers | None:
    """Return what the family of a denoiser states of its latents; None for other networks."""
    for family in known_families():
        for architecture in family.architectures:
            if architecture.model_class == model_class and architecture.latent is not None:
                return architecture.latent
    return None


def _of_folder(name: str, folder: Path, variant: str | None) -> Blueprint:
    index = read_config(folder / "model_index.json")
    networks = {}
    for part, (library, class_name) in read_index(index, folder / "model_index.json").items():
        config = folder / part / "config.json"
        if config.is_file():
            checkpoint = partial(_checkpoint_in, folder / part, library, variant)
            networks[part] = Network(f"{library}.{class_name}", read_config(config), checkpoint)
    return Blueprint(name, _pipeline_class(index), networks, "folder", index)


def _checkpoint_in(folder: Path, library: str, variant: str | None) -> Checkpoint | None:
    """The headers of a component's weights; None where they are not there, or not all."""
    stem = "diffusion_pytorch_model" if library == "diffusers" else None
    has_variant = variant is not None and any(f".{variant}." in file.name for file in folder.iterdir())
    try:
        return open_checkpoint(find_in_folder(folder, stem, variant if has_variant else None).files)
    except CheckpointError:
        if any(folder.glob("*.safetensors")):
            raise
        return None


def _of_file(name: str, file: Path) -> Blueprint:
    """What a checkpoint holds, as far as its header tells it; of several candidates for a part, the first."""
    networks: dict[str, Network] = {}
    checkpoint = partial(open_checkpoint, file)
    for candidate in identify(file).candidates:
        if candidate.model_class is not None and candidate.component not in networks:
            networks[candidate.component] = Network(candidate.model_class, candidate.config, checkpoint, candidate)
    return Blueprint(name, None, networks, "file", {})


def _of_catalog(model_id: str) -> Blueprint | None:
    """A pipeline that the catalog knows, or networks that were published under an id."""
    try:
        repository = find_repository(model_id)
    except IdentificationError:
        networks = {
            architecture.component: Network(architecture.model_class, architecture.published[model_id])
            for family in known_families()
            for architecture in family.architectures
            if model_id in architecture.published
        }
        return Blueprint(model_id, None, networks, "catalog", {}) if networks else None
    parts = {
        name: Network(component.model_class, component_config(component))
        for name, component in repository.components.items()
    }
    return Blueprint(model_id, repository.pipeline_class, parts, "catalog", {})


def _of_hub(name: str, remote: RemoteModel) -> Blueprint:
    index = remote.config("model_index.json")
    there = set(remote.repository.names)
    networks = {}
    for part, (library, class_name) in read_index(index, f"{name}: model_index.json").items():
        if f"{part}/config.json" in there:
            checkpoint = partial(_checkpoint_on, remote, part)
            networks[part] = Network(f"{library}.{class_name}", remote.config(f"{part}/config.json"), checkpoint)
    return Blueprint(name, _pipeline_class(index), networks, "hub", index)


def _checkpoint_on(remote: RemoteModel, part: str) -> Checkpoint | None:
    return remote.checkpoints(part).get(part)


def _pipeline_class(index: Mapping[str, Any]) -> str | None:
    name = index.get("_class_name")
    return f"diffusers.{name}" if isinstance(name, str) else None


def _like(name: str) -> list[str]:
    """The ids of models with latents that are most like this one."""
    ids = [known for family in known_families() for known in family.repositories]
    ids += [
        known
        for family in known_families()
        for architecture in family.architectures
        if architecture.latent is not None
        for known in architecture.published
    ]
    return get_close_matches(name, dict.fromkeys(ids), n=5, cutoff=0.0)
