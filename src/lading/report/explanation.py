"""`explain`: how a model is loaded, and what becomes of a prompt in it, in plain words and with its own numbers.

All of it is told from configs and headers, or from the catalog's entry: no weight is read. Plain Python.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lading.errors import ComponentError, ShapeError
from lading.hub import shipped_model
from lading.hub.snapshot import SHIPPED
from lading.latents import LatentFormat
from lading.loading.blueprint import Blueprint, Place, read_blueprint
from lading.loading.configs import CONFIG_FILES, read_config, read_index
from lading.loading.loaders import find_loader
from lading.report.stages import Extent, Stage, stages
from lading.sizes import format_size

_WIDTH = 100
_SIDE, _FILM, _FRAMES = 1024, (480, 832), 81
"""Of what is explained where neither the caller nor a config says a size: what models of these years make."""

_ROLES = {
    "tokenizer": "cuts a prompt into tokens",
    "text_encoder": "turns tokens into embeddings",
    "image_encoder": "turns a picture into embeddings",
    "feature_extractor": "prepares pictures for a network",
    "image_processor": "prepares pictures for a network",
    "processor": "prepares pictures and text for a network",
    "unet": "takes noise from the latent, step by step",
    "transformer": "takes noise from the latent, step by step",
    "controlnet": "steers the denoiser by a picture",
    "scheduler": "says how much noise there is at each step",
    "vae": "makes latents of pixels, and pixels of latents",
    "video_vae": "makes latents of pixels, and pixels of latents",
    "audio_vae": "makes latents of sounds, and sounds of latents",
    "vocoder": "makes sound of a spectrogram",
    "safety_checker": "looks whether a picture may be shown",
}


@dataclass(frozen=True)
class ExplainedPart:
    """A component, from its name in the config to the object that it becomes.

    Attributes:
        loader: that the registry chooses for its name.
        role: what it is for; empty where its name does not say it.
        files: that it is made of; empty where they are not here.
        tensors: in its checkpoint; None where there is none here.
        dtype: of most of them.
    """

    name: str
    model_class: str
    loader: str
    role: str
    files: tuple[str, ...] = ()
    tensors: int | None = None
    nbytes: int | None = None
    dtype: str | None = None

    @property
    def story(self) -> str:
        """How the object comes to be."""
        if self.loader != "network" and self.tensors is None:
            files = _listed(self.files) if self.files else "its files"
            return f'Loader "{self.loader}": the class makes itself of {files}; there are no weights in it.'
        built = f'Loader "{self.loader}": built from its config without memory'
        if self.tensors is None:
            return f"{built}, then given its weights, which are not here."
        size = format_size(self.nbytes or 0)
        return f"{built}, then given the {self.tensors} tensors ({size}, {self.dtype}) of {_listed(self.files)}."


@dataclass(frozen=True)
class Explanation:
    """How a model is loaded, and what becomes of a prompt in it; `print` it.

    Attributes:
        model: as it was named.
        place: where its configs were found.
        pipeline_class: None where nothing says it.
        parts: in the pipeline's order.
        extent: of what is made in the stages; None where the catalog knows no denoiser in it.
        stages: from words to pixels.
        sizes: which sizes it can make.
    """

    model: str
    place: Place
    pipeline_class: str | None
    parts: tuple[ExplainedPart, ...]
    extent: Extent | None
    stages: tuple[Stage, ...]
    sizes: str

    def as_dict(self) -> dict[str, Any]:
        """The explanation for JSON."""
        extent = self.extent
        return {
            "model": self.model,
            "place": self.place,
            "pipeline_class": self.pipeline_class,
            "components": [{**asdict(part), "story": part.story} for part in self.parts],
            "pixels": None if extent is None else extent.sizes,
            "latent": None if extent is None else dict(extent.latent.sizes),
            "tokens": None if extent is None else extent.latent.tokens,
            "stages": [asdict(stage) for stage in self.stages],
            "sizes": self.sizes,
        }

    def __str__(self) -> str:
        lines = [f"{self.model}  {self.pipeline_class or 'networks'}, from {_PLACES[self.place]}", ""]
        lines += ["From names to objects", *_wrapped(self._opening(), "  ")]
        width = max((len(part.name) for part in self.parts), default=0)
        for part in self.parts:
            role = f": {part.role}" if part.role else ""
            lines += ["", f"  {part.name:{width}}  {part.model_class}{role}", *_wrapped(part.story, " " * (width + 4))]
        if self.extent is not None:
            lines += ["", f"From words to {self.extent}"]
            for number, stage in enumerate(self.stages, 1):
                lines += _wrapped(f"{number}  {stage.text}", "  ", "     ")
                lines += [f"       {line}" for line in stage.shapes]
            lines += ["", *_wrapped(self.sizes)]
        return "\n".join(lines)

    def _opening(self) -> str:
        if self.place == "file":
            return "The header of the file tells which networks it holds; each is built from what its shapes say."
        count = f"{len(self.parts)} component{'s' if len(self.parts) > 1 else ''}"
        if self.place == "catalog":
            has = f"its pipeline has {count} with weights" if self.pipeline_class else "these networks of it"
            return (
                f"lading knows this model: {has}. Where its files are, model_index.json names the pipeline's class and "
                "each component; a loader is chosen by the component's name and makes an object of its class."
            )
        return (
            f"model_index.json names the pipeline's class and {count}, each with the class of the object that it is to "
            "become. A loader is chosen by the component's name and makes that object of the files in the folder of "
            "this name; the pipeline is then made of the objects."
        )


_PLACES: Mapping[Place, str] = {
    "folder": "its folder",
    "file": "its header",
    "catalog": "the catalog, without a file of it",
    "hub": "the configs and headers on the hub",
}


def explain(
    model: str | os.PathLike[str],
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    revision: str | None = None,
) -> Explanation:
    """Explain how a model is loaded, and what becomes of a prompt in it.

    Args:
        model: a folder in the diffusers layout, a checkpoint file, "shapes", the id of a model that the catalog knows
            (the hub is not asked then), or another id on the Hugging Face Hub.
        height: in pixels, of what is made; what the configs say by default, else a usual size.
        width: in pixels.
        num_frames: of a film.
        revision: branch, tag or commit on the hub.

    Raises:
        ComponentError: there is no such model.
        DownloadError: the hub could not give it.
        ShapeError: half a size is given, or the model cannot make it.

    >>> import lading
    >>> print(lading.explain("shapes").stages[-1].text)
    vae turns the latent into pixels: each of its 8 x 8 places becomes 8 x 8 pixels.
    """
    blueprint = read_blueprint(model, revision=revision)
    folder = _folder_of(model) if blueprint.place == "folder" else None
    parts = tuple(_parts(blueprint, folder))
    try:
        latents = blueprint.latent_format()
    except ComponentError:
        return Explanation(blueprint.name, blueprint.place, blueprint.pipeline_class, parts, None, (), "")
    extent = _extent(blueprint, latents, height, width, num_frames)
    told = stages(blueprint, latents, extent, _tokens(folder))
    sizes = f"Height and width are multiples of {latents.multiple}"
    sizes += f", frames {latents.frames}." if latents.frames is not None else "."
    sizes += f" What a run takes, and how long it lasts: lading plan {blueprint.name}"
    return Explanation(blueprint.name, blueprint.place, blueprint.pipeline_class, parts, extent, told, sizes)


def _parts(blueprint: Blueprint, folder: Path | None) -> list[ExplainedPart]:
    named = read_index(blueprint.settings, blueprint.name) if blueprint.settings else {}
    classes = {name: f"{library}.{class_name}" for name, (library, class_name) in named.items()}
    classes |= {name: network.model_class for name, network in blueprint.networks.items()}
    return [_part(name, model_class, blueprint, folder) for name, model_class in classes.items()]


def _part(name: str, model_class: str, blueprint: Blueprint, folder: Path | None) -> ExplainedPart:
    label, _ = find_loader(name)
    base = name.rstrip("0123456789").rstrip("_")
    network, role = blueprint.networks.get(name), _ROLES.get(base, "")
    checkpoint = None if network is None else network.checkpoint()
    if checkpoint is None:
        files = sorted(file.name for file in (folder / name).glob("*") if file.is_file()) if folder is not None else []
        return ExplainedPart(name, model_class, "network" if network is not None else label, role, tuple(files))
    dtypes = checkpoint.dtypes
    held = tuple(file.name for file in checkpoint.files)
    dtype = max(dtypes, key=lambda dtype: dtypes[dtype]) if dtypes else None
    return ExplainedPart(name, model_class, "network", role, held, len(checkpoint), checkpoint.nbytes, dtype)


def _folder_of(model: str | os.PathLike[str]) -> Path:
    return shipped_model() if model == SHIPPED else Path(model)


def _tokens(folder: Path | None) -> int | None:
    """How many tokens the first tokenizer makes at most; None where nothing says it, or there is no limit."""
    file = folder / "tokenizer" / "tokenizer_config.json" if folder is not None else None
    most = read_config(file).get("model_max_length") if file is not None and file.is_file() else None
    return most if isinstance(most, int) and most < 1_000_000 else None


def _extent(
    blueprint: Blueprint, latents: LatentFormat, height: int | None, width: int | None, num_frames: int | None
) -> Extent:
    if (height is None) != (width is None):
        given, missing = ("height", "width") if height is not None else ("width", "height")
        raise ShapeError(f"{given} {height or width} is half a size: give the {missing} too")
    if num_frames is None and latents.frames is not None:
        num_frames = latents.frames.nearest(_FRAMES)[0] if not latents.frames.allows(_FRAMES) else _FRAMES
    if height is None or width is None:
        height, width = _usual_size(blueprint, latents)
    return Extent(latents.shape(1, height, width, num_frames), height, width, num_frames)


def _usual_size(blueprint: Blueprint, latents: LatentFormat) -> tuple[int, int]:
    """The size that the denoiser's config states in latents, else what models of its kind make."""
    stated = blueprint.networks[blueprint.denoisers[0]].config.get("sample_size")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return (stated * (latents.spatial // latents.folded),) * 2
    sides = (_SIDE, _SIDE) if latents.frames is None else _FILM
    height, width = (round(side / latents.multiple) * latents.multiple for side in sides)
    return height, width


def _listed(files: tuple[str, ...]) -> str:
    names = [file for file in files if file not in CONFIG_FILES] or list(files)
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} files, {names[0]} first"


def _wrapped(text: str, first: str = "", following: str | None = None) -> list[str]:
    indent = first if following is None else following
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
