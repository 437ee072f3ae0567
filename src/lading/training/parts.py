"""Which of a pipeline's parts is trained and which prepare for it, told from configs: nothing is loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lading.catalog.architecture import Architecture
from lading.catalog.registry import architecture_of
from lading.errors import ComponentError
from lading.hub import model_folder
from lading.latents import LatentFormat
from lading.loading.components import variants_in
from lading.loading.configs import read_config, read_model_index
from lading.loading.latents import latent_format
from lading.loading.loaders import ComponentSpec, find_pipeline_class, resolve_class

_AUTOENCODERS = ("vae", "video_vae")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_GIVEN_BESIDE = ("image", "video", "control_image", "control_video", "mask_image", "conditions", "reference_image")
"""Arguments of pipelines that start from more than words."""


@dataclass(frozen=True)
class PipelineParts:
    """A text-to-picture or text-to-film pipeline, taken apart for training.

    Attributes:
        folder: in the diffusers layout.
        pipeline_class: of diffusers.
        denoiser: what LoRA and full fine-tuning train.
        architecture: what the catalog knows of the denoiser.
        autoencoder: makes latents of pictures.
        encoders: what makes conditions of captions: text encoders, tokenizers and processors, by name.
        latents: from pixels to the denoiser's latent.
        variants: of the weights of each component, such as "fp16"; None for the usual ones.
    """

    folder: Path
    pipeline_class: Any
    denoiser: ComponentSpec
    architecture: Architecture
    autoencoder: ComponentSpec
    encoders: tuple[str, ...]
    latents: LatentFormat
    variants: Mapping[str, str | None] = field(default_factory=dict)

    def variants_of(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return the variants of some components, as `load_components` takes them."""
        return {name: self.variants.get(name) for name in names}

    @property
    def tells_original_size(self) -> bool:
        """Whether the denoiser is told how large a picture was and where it was cut."""
        return "original_size" in inspect.signature(self.pipeline_class.__call__).parameters

    @property
    def unused(self) -> tuple[str, ...]:
        """Components that training does without, and those that the pipeline was saved without."""
        used = (self.denoiser.name, self.autoencoder.name, "scheduler", *self.encoders)
        index = read_config(self.folder / "model_index.json")
        return tuple(name for name, value in index.items() if isinstance(value, list) and name not in used)


def examine(
    model: str | os.PathLike[str], revision: str | None = None, variant: str | None = None, token: str | None = None
) -> PipelineParts:
    """Take a pipeline apart, or refuse it by name before anything is loaded.

    Args:
        model: a folder in the diffusers layout, "shapes" for the model that ships here, or a Hugging Face id.
        variant: such as "fp16", of the weights of the components that have it.

    Raises:
        ComponentError: the pipeline cannot be trained here, or no component has the variant; the message says why.
    """
    folder = model_folder(model, None, revision, variant, None, token)
    variants = variants_in(folder, variant)
    index = read_model_index(folder)
    name = str(read_config(folder / "model_index.json").get("_class_name"))
    specs = {part: ComponentSpec(part, *entry, folder / part) for part, entry in index.items()}
    latents = latent_format(folder)
    denoisers = {part: known for part, spec in specs.items() if (known := _denoiser(spec)) is not None}
    if len(denoisers) > 1:
        raise _refusal(folder, name, f"it has the denoisers {', '.join(denoisers)}, which share the timesteps")
    if latents.audio is not None:
        raise _refusal(folder, name, "it makes films with their sound")
    ((denoiser, architecture),) = denoisers.items()
    autoencoder = next((part for part in _AUTOENCODERS if part in specs), None)
    if autoencoder is None:
        raise _refusal(folder, name, f"it has no autoencoder ({' or '.join(_AUTOENCODERS)})")
    found = find_pipeline_class(name, folder / "model_index.json")
    _require_words_alone(folder, name, found)
    taken = read_config(specs[denoiser].folder / "config.json").get("in_channels")
    features = latents.channels * (latents.layout.patch.get("height", 1) ** 2 if latents.layout.packed else 1)
    if isinstance(taken, int) and taken != features:
        raise _refusal(folder, name, f"its denoiser takes {taken} channels, of which {features} are the latent's")
    encoders = tuple(part for part in specs if part not in (denoiser, autoencoder, "scheduler", *_UNUSED))
    for part in (denoiser, autoencoder, *encoders):
        resolve_class(specs[part])
    return PipelineParts(folder, found, specs[denoiser], architecture, specs[autoencoder], encoders, latents, variants)


def _denoiser(spec: ComponentSpec) -> Architecture | None:
    """What the catalog knows of a component that makes latents."""
    known = architecture_of(spec.qualified_class)
    return known[1] if known is not None and known[1].latent is not None else None


def _require_words_alone(folder: Path, name: str, found: Any) -> None:
    """Refuse pipelines that start from a picture, or that cannot be given a latent."""
    takes = inspect.signature(found.__call__).parameters
    beside = [argument for argument in _GIVEN_BESIDE if argument in takes]
    if beside:
        raise _refusal(folder, name, f"it starts from more than words ({', '.join(beside)})")
    lacks = [argument for argument in ("prompt", "latents", "num_inference_steps") if argument not in takes]
    if lacks:
        raise _refusal(folder, name, f"it cannot be given {', '.join(lacks)}")


def _refusal(folder: Path, name: str, reason: str) -> ComponentError:
    return ComponentError(
        f"{folder}: {name} cannot be trained here: {reason}: use a text-to-image or text-to-video pipeline with one "
        "denoiser"
    )
