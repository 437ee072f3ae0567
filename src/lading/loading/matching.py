"""Which pipeline networks from anywhere are, and which place in it each of them takes. Nothing is loaded here."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from lading.catalog import Candidate, Component, Repository, component_config, find_architecture, known_families
from lading.catalog.architecture import Config
from lading.catalog.construction import build_on_meta, network_shapes
from lading.errors import CheckpointError, ComponentError, IdentificationError
from lading.loading.configs import read_config
from lading.loading.ingredients import ComponentFolder, Ingredients, Part
from lading.loading.recognised import named_in, source_of
from lading.loading.source import Source

_log = logging.getLogger("lading.loading")


@dataclass(frozen=True, eq=False)
class Cast:
    """A network in its place.

    Attributes:
        candidate: with the config that it has there.
        layouts: that its tensors fit.
    """

    part: Part
    component: Component
    candidate: Candidate
    layouts: tuple[str, ...]

    @property
    def model_class(self) -> str:
        """Library and class."""
        return self.component.model_class

    def source(self) -> Source:
        """Return its tensors.

        Raises:
            CheckpointError: they are not such that the class can hold them.
            IdentificationError: they fit several layouts.
        """
        if len(self.layouts) > 1:
            layouts = " and ".join(map(repr, self.layouts))
            raise IdentificationError(
                f"{self.part}: its tensors fit the layouts {layouts} alike: load it with load_model and the candidate "
                "of lading.identify that is meant"
            )
        found = source_of(self.part.file.checkpoint, self.candidate, self.part.file.found.candidates)
        if self.component.layers is not None:
            found = found.without(name for name in found.origins if _layer(name) >= self.component.layers)
        absent = [name for name in self.component.identities if name not in found.origins]
        if not absent:
            return found
        shapes = network_shapes(build_on_meta(self.model_class, self.candidate.config)).shapes
        return found.with_identities({name: shapes[name] for name in absent})


@dataclass(frozen=True, eq=False)
class Assignment:
    """A pipeline, and what takes which place in it.

    Attributes:
        name: the pipeline's hub id, or its folder.
        parts: networks in files.
        folders: networks in folders.
        missing: places that nothing takes.
        left_over: networks that have no place in it.
    """

    name: str
    repository: Repository
    parts: Mapping[str, Cast]
    folders: Mapping[str, ComponentFolder]
    missing: tuple[str, ...]
    left_over: tuple[Part, ...]

    @property
    def denoiser(self) -> Cast | None:
        """The first network, if it is in a file."""
        return self.parts.get(next(iter(self.repository.components)))

    @property
    def is_refuted(self) -> bool:
        """Whether the denoiser is none, or one that was published as another model."""
        denoiser = self.denoiser
        if denoiser is None:
            return next(iter(self.repository.components)) not in self.folders
        models = denoiser.candidate.models
        return bool(models) and denoiser.component.published not in models

    @property
    def has_channels(self) -> bool:
        """Whether the denoiser takes as many channels as the published one: what else than noise a pipeline gives it
        is in them."""
        name, component = next(iter(self.repository.components.items()))
        if name in self.folders:
            config = read_config(self.folders[name].folder / "config.json")
        else:
            config = dict(self.parts[name].candidate.config)
        return config.get("in_channels") == component_config(component).get("in_channels")

    def evidence(self, given: Ingredients) -> tuple[int, ...]:
        """Return how much speaks for it, the weightiest first."""
        named, called = 0, 0
        for cast in self.parts.values():
            called += bool(named_in(cast.component.called, cast.part.hints))
        if self.denoiser is not None:
            named = named_in((self.name, self.denoiser.component.published), self.denoiser.part.hints)
        published = [cast.component.published in cast.candidate.models for cast in self.parts.values()]
        everywhere = named_in((self.name,), " ".join(file.hints for file in given.files))
        return -len(self.left_over), self.has_channels, named, called, -len(self.missing), sum(published), everywhere

    def outcome(self) -> tuple[Any, ...]:
        """What the networks come to: pipelines that agree in it differ in nothing that is loaded from files."""
        configs = [(name, cast.model_class, repr(cast.candidate.config)) for name, cast in self.parts.items()]
        return self.repository.pipeline_class, repr(self.repository.settings), configs


def find_assignment(given: Ingredients) -> tuple[Assignment, ...]:
    """Return the pipeline of the catalog that networks make; several where what is in files is the same in each.

    Raises:
        ComponentError: none, or several do.
    """
    likely = likely_assignments(given)
    if not likely:
        raise ComponentError(_why_none(given))
    refuse_left_over(likely[0])
    if len({repr(one.outcome()) for one in likely}) > 1:
        refuse_several(given, likely)
    return tuple(likely)


def refuse_several(given: Ingredients, likely: Iterable[Assignment], why: str = "") -> NoReturn:
    """Raise the error that networks may be of several pipelines.

    Args:
        why: that matters.

    Raises:
        ComponentError: always.
    """
    names = ", ".join(f"{one.name} ({one.repository.pipeline_class.rpartition('.')[2]})" for one in likely)
    raise ComponentError(f"{given}: may be {names}{why}: say which with base=, one of these ids or a folder")


def refuse_left_over(assignment: Assignment) -> None:
    """Raise an error where a file was given that the pipeline has no place for.

    Networks beside those that it uses may be in a file.

    Raises:
        ComponentError: there is such a file.
    """
    used = {cast.part.file for cast in assignment.parts.values()}
    beside = [part for part in assignment.left_over if part.file in used]
    if beside:
        _log.info("%s: not used: %s", assignment.name, "; ".join(map(str, beside)))
    others = [part for part in assignment.left_over if part.file not in used]
    if others:
        places = ", ".join(f"{name} ({one.model_class})" for name, one in assignment.repository.components.items())
        raise ComponentError(
            f"{'; '.join(map(str, others))}: a {assignment.repository.pipeline_class.rpartition('.')[2]}, as in "
            f"{assignment.name}, has no place for it: it has {places}: leave it out, or say with base= which pipeline "
            "is meant"
        )


def likely_assignments(given: Ingredients) -> list[Assignment]:
    """Return the pipelines of the catalog for which the most speaks; several where it speaks for them alike."""
    found = [one for one in _all_assignments(given) if not one.is_refuted]
    most = max((one.evidence(given) for one in found), default=())
    return [one for one in found if one.evidence(given) == most]


def assign(
    name: str, repository: Repository, given: Ingredients, configs: Mapping[str, Config] | None = None
) -> Assignment:
    """Give every network its place in a pipeline.

    Where a pipeline has several networks of a class, names in paths and prefixes tell them apart, else published
    configs, else the order in which they were given.

    Args:
        configs: of places, as the pipeline's own folder states them.
    """
    left, folders = list(given.parts), list(given.folders)
    parts: dict[str, Cast] = {}
    placed: dict[str, ComponentFolder] = {}
    for place, component in repository.components.items():
        alike = [one for one in folders if place == one.folder.name or one.model_class == component.model_class]
        if alike:
            placed[place] = max(alike, key=lambda one: one.folder.name == place)
            folders.remove(placed[place])
            continue
        fitting = {part: candidates for part in left if (candidates := _fitting(part, component))}
        if fitting:
            part = max(fitting, key=lambda part: _claim(part, component, fitting[part]))
            left.remove(part)
            layouts = tuple(dict.fromkeys(one.layout for one in fitting[part]))
            config = (configs or {}).get(place)
            parts[place] = Cast(part, component, _settled(part, fitting[part], component, config), layouts)
    missing = tuple(
        place
        for place in repository.components
        if place not in parts and place not in placed and place not in repository.optional
    )
    return Assignment(name, repository, parts, placed, missing, tuple(left))


def relative(pipeline_class: str, place: str, model_class: str) -> Component:
    """Return a component of a pipeline of one's own, with what is known of its like in the catalog."""
    for family in known_families():
        for repository in family.repositories.values():
            like = repository.components.get(place)
            if like is not None and (repository.pipeline_class, like.model_class) == (pipeline_class, model_class):
                return replace(like, published="")
    return Component(model_class)


def _all_assignments(given: Ingredients) -> list[Assignment]:
    """Those of all pipelines whose denoiser is among what was given."""
    classes = {candidate.model_class for part in given.parts for candidate in part.candidates}
    classes |= {folder.model_class for folder in given.folders}
    return [
        assign(name, repository, given)
        for family in known_families()
        for name, repository in family.repositories.items()
        if next(iter(repository.components.values())).model_class in classes
    ]


def _fitting(part: Part, component: Component) -> tuple[Candidate, ...]:
    """What a part is as the network of a place; also where its tensors speak more for another class."""
    own = tuple(one for one in part.candidates if one.model_class == component.model_class)
    return own or tuple(one for one in part.of_class(component.model_class) if _agrees(part, one, component))


def _agrees(part: Part, candidate: Candidate, component: Component) -> bool:
    """Whether a candidate has all names and shapes of its class but for identities."""
    try:
        network = network_shapes(build_on_meta(component.model_class, candidate.config))
        origins = source_of(part.file.checkpoint, candidate, part.file.found.candidates).origins
    except (IdentificationError, CheckpointError):
        return False
    absent = {
        name
        for name in network.shapes.keys() - origins.keys()
        if not any(twin in origins for twin in network.tied.get(name, ()))
    }
    return absent <= set(component.identities) and all(
        network.shapes.get(name) == origin.shape for name, origin in origins.items()
    )


def _claim(part: Part, component: Component, candidates: tuple[Candidate, ...]) -> tuple[int, int]:
    """How much speaks for a part in a place."""
    called = named_in(component.called, part.hints)
    return called, any(component.published in one.models for one in candidates)


def _settled(part: Part, candidates: tuple[Candidate, ...], component: Component, stated: Config | None) -> Candidate:
    """Return a candidate whose config has what shapes do not tell from the pipeline that it is for.

    Args:
        stated: the config in the pipeline's folder; None takes that of the published pipeline.
    """
    known = [one for one in candidates if component.published in one.models]
    candidate = (known or list(candidates))[0]
    assert candidate.model_class is not None  # it was chosen for its class
    if stated is not None:
        others = {key: value for key, value in stated.items() if not key.startswith("_")}
        told = {key: stated[key] for key in candidate.unverified if key in stated}
    else:
        architecture = find_architecture(candidate.family, candidate.model_class)
        published = architecture.published.get(component.published, {})
        others = {}
        unknown = architecture.unverified.keys() - part.file.told_by_tensors(candidate)
        told = {
            key: published[key]
            for key in unknown
            if key in published and _as_many(published[key], candidate.config.get(key))
        }
    if component.layers is not None:
        told["num_hidden_layers"] = min(component.layers, candidate.config["num_hidden_layers"])
    return replace(candidate, config={**others, **candidate.config, **told})


def _as_many(published: object, own: object) -> bool:
    """Whether a published value suits a network: it is not for another number of blocks."""
    lists = (list, tuple)
    return not (isinstance(published, lists) and isinstance(own, lists) and len(published) != len(own))


def _layer(name: str) -> int:
    """The number of the layer that a tensor of an encoder belongs to; -1 for those of none."""
    found = re.search(r"(?:^|\.)layers\.([0-9]+)\.", name)
    return int(found[1]) if found is not None else -1


def _why_none(given: Ingredients) -> str:
    for one in _all_assignments(given):
        if one.denoiser is not None and one.denoiser.candidate.models:
            models = ", ".join(one.denoiser.candidate.models)
            return (
                f"{one.denoiser.part}: is {models}, of which the catalog knows no pipeline: give base=, a folder or an "
                "id of one in the diffusers layout"
            )
    held = "; ".join(map(str, (*given.parts, *given.folders))) or "nothing"
    return (
        f"{held}: no denoiser of a pipeline that the catalog knows is among them: give its file too, or base=, a "
        "folder or an id of a pipeline in the diffusers layout"
    )
