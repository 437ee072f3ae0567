"""What a pipeline is made of when it lies in no folder of its own: networks in files, other components in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lading.catalog import (
    Candidate,
    Identification,
    Shapes,
    UnknownSizeError,
    find_architecture,
    identify_checkpoint,
)
from lading.checkpoint import Checkpoint, open_checkpoint
from lading.checkpoint.dduf_file import is_dduf, unpack_dduf
from lading.checkpoint.files import natural_key
from lading.checkpoint.quantised import as_the_network_has_it
from lading.errors import CheckpointError, ComponentError, IdentificationError
from lading.hub import ModelConfig
from lading.loading.configs import class_from_config
from lading.loading.loaders import ComponentSpec, resolve_class
from lading.loading.recognised import source_of, why_unknown

Ingredient: TypeAlias = "str | os.PathLike[str] | ModelConfig"
"""A checkpoint file, the folder of a component or of a pipeline, or a `ModelConfig` that names such or several."""


@dataclass(frozen=True, eq=False)
class BareFile:
    """A checkpoint without a word on what it is.

    Attributes:
        found: what it holds.
        hints: the id and the path by which it was given, in which a published model may be named.
        vram_config: of the `ModelConfig` that named it; empty for none.
    """

    checkpoint: Checkpoint
    found: Identification
    hints: str
    vram_config: Mapping[str, Any] = field(default_factory=dict)
    _of_class: dict[str, tuple[Candidate, ...]] = field(default_factory=dict)
    _told: dict[Candidate, frozenset[str]] = field(default_factory=dict)

    @property
    def parts(self) -> Iterator[Part]:
        """The networks in it, in the order of their prefixes."""
        yield from (
            Part(self, prefix) for prefix in sorted({one.prefix for one in usable(self.found)}, key=natural_key)
        )

    def of_class(self, model_class: str) -> tuple[Candidate, ...]:
        """Return what its networks are as networks of one class, also where another class fits them better."""
        if model_class not in self._of_class:
            own = tuple(one for one in usable(self.found) if one.model_class == model_class)
            others = usable(identify_checkpoint(self.checkpoint, model_class))
            taken = {one.prefix for one in own}
            self._of_class[model_class] = (*own, *(one for one in others if one.prefix not in taken))
        return self._of_class[model_class]

    def told_by_tensors(self, candidate: Candidate) -> frozenset[str]:
        """Return the entries of a candidate's config that the tensors' shapes tell, or allow to guess."""
        if candidate not in self._told:
            architecture = find_architecture(candidate.family, str(candidate.model_class))
            try:
                origins = source_of(self.checkpoint, candidate, self.found.candidates).origins
                told = architecture.infer_config(Shapes({name: origin.shape for name, origin in origins.items()}))
            except (CheckpointError, UnknownSizeError):  # whoever loads it says what is wrong
                told = dict(candidate.config)
            self._told[candidate] = frozenset(told)
        return self._told[candidate]

    def __str__(self) -> str:
        return ", ".join(map(str, self.checkpoint.files))


@dataclass(frozen=True)
class Part:
    """One network in a file.

    Attributes:
        prefix: of its names in the file.
    """

    file: BareFile
    prefix: str

    @property
    def hints(self) -> str:
        """Where its name may be: the file's hints and the prefix."""
        return f"{self.file.hints} {self.prefix}"

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What it is."""
        return tuple(one for one in usable(self.file.found) if one.prefix == self.prefix)

    def of_class(self, model_class: str) -> tuple[Candidate, ...]:
        """Return what it is as a network of one class."""
        return tuple(one for one in self.file.of_class(model_class) if one.prefix == self.prefix)

    def __str__(self) -> str:
        what = "/".join(dict.fromkeys(str(one.model_class) for one in self.candidates))
        return f"{what} in {self.file}{f' under {self.prefix!r}' if self.prefix else ''}"


@dataclass(frozen=True)
class ComponentFolder:
    """A folder whose config names the class of what is in it: a tokenizer, a scheduler, also a network."""

    folder: Path
    library: str
    class_name: str

    @property
    def model_class(self) -> str:
        """Library and class."""
        return f"{self.library}.{self.class_name}"

    def __str__(self) -> str:
        return f"{self.model_class} in {self.folder}"


@dataclass(frozen=True)
class Ingredients:
    """All that was given to make a pipeline of.

    Attributes:
        files: in the order in which they were given.
        pipeline: a folder with a `model_index.json`, where one is among them.
    """

    files: tuple[BareFile, ...]
    folders: tuple[ComponentFolder, ...]
    pipeline: Path | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All networks in files."""
        return tuple(part for file in self.files for part in file.parts)

    def __str__(self) -> str:
        return ", ".join([*map(str, self.files), *map(str, self.folders)]) or "nothing"


def gather(given: Iterable[Ingredient]) -> Ingredients:
    """Find out what was given; what a `ModelConfig` names is fetched.

    Raises:
        IdentificationError: a file holds no network that is known.
        CheckpointError: a file is damaged or unsafe.
        ComponentError: a folder does not say what is in it, or there are two pipelines.
        DownloadError: the hub could not give it.
    """
    files: list[BareFile] = []
    folders: list[ComponentFolder] = []
    pipelines: list[Path] = []
    for one in given:
        paths, hints, vram_config = _named(one)
        paths = [unpack_dduf(path) if is_dduf(path) else path for path in paths]
        for folder in (path for path in paths if path.is_dir()):
            if (folder / "model_index.json").is_file():
                pipelines.append(folder)
                continue
            component = _component_folder(folder)
            if component is not None:
                folders.append(component)
            else:
                files.append(_bare_file([folder], hints, vram_config))
        shards = [path for path in paths if not path.is_dir()]
        if shards:
            files.append(_bare_file(shards, hints, vram_config))
    if len(pipelines) > 1:
        raise ComponentError(f"{' and '.join(map(str, pipelines))} are a pipeline each: give one of them")
    return Ingredients(tuple(files), tuple(folders), next(iter(pipelines), None))


def usable(found: Identification) -> tuple[Candidate, ...]:
    """Return the candidates that have a class."""
    return tuple(one for one in found.candidates if one.model_class is not None)


def _named(one: Ingredient) -> tuple[list[Path], str, dict[str, Any]]:
    if not isinstance(one, ModelConfig):
        return [Path(one)], os.fspath(one), {}
    one.download_if_necessary()
    paths = one.path if isinstance(one.path, list) else [one.path or ""]
    given = {key: value for key, value in one.vram_config().items() if value is not None}
    return [Path(path) for path in paths], " ".join([one.model_id or "", *paths]), given


def _component_folder(folder: Path) -> ComponentFolder | None:
    """A folder whose config names a class; None for one of weights alone, or of a class of another program's."""
    named = class_from_config(folder)
    if named is None:
        return None
    try:
        resolve_class(ComponentSpec(folder.name, *named, folder))
    except ComponentError:
        return None
    return ComponentFolder(folder, *named)


def _bare_file(paths: list[Path], hints: str, vram_config: dict[str, Any]) -> BareFile:
    checkpoint = as_the_network_has_it(open_checkpoint(paths[0] if len(paths) == 1 else paths))
    found = identify_checkpoint(checkpoint)
    if not usable(found):
        raise IdentificationError(f"{', '.join(map(str, checkpoint.files))}: {why_unknown(found)}")
    return BareFile(checkpoint, found, hints, vram_config)
