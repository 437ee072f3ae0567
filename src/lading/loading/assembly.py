"""Pipelines of separate parts: networks from files that are recognised, tokenizers and schedulers from their folders,
and what was not given from a pipeline in the diffusers layout."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lading.catalog import Repository, find_repository
from lading.catalog.architecture import Config
from lading.errors import ComponentError, DownloadError, IdentificationError
from lading.hub import model_folder, open_remote
from lading.loading.bare_component import BareNetwork
from lading.loading.components import (
    Components,
    find_spec,
    for_component,
    load_bare,
    load_by_spec,
    load_in_turn,
)
from lading.loading.configs import CONFIG_FILES, processor_class, read_config, read_model_index
from lading.loading.ingredients import ComponentFolder, Ingredient, Ingredients, gather
from lading.loading.loaders import ComponentSpec, LoadOptions, find_pipeline_class, resolve_class
from lading.loading.matching import (
    Assignment,
    assign,
    find_assignment,
    refuse_left_over,
    refuse_several,
    relative,
)
from lading.loading.network import construction, is_diffusers_model, is_transformers_model
from lading.loading.record import LoadRecord
from lading.loading.streamed import limits_on

_KINDS = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("tokenizer_config.json",),
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "image_processor": ("preprocessor_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
}
"""Place in a pipeline, without its number -> the configs that a folder for it has one of."""

Job = Callable[[LoadOptions], "tuple[Any, LoadRecord]"]
"""Loads one component with options that depend on its name."""


@dataclass(frozen=True)
class Blueprint:
    """A pipeline that is to be made.

    Attributes:
        source: the folder or the hub id that has what was not given; networks only where the caller named it.
        named: whether the caller did.
        others: places in the pipeline that no network takes.
        rivals: other pipelines that the files may be of, in which the networks are the same.
    """

    assignment: Assignment
    pipeline_class: Any
    source: str
    named: bool
    others: tuple[str, ...]
    rivals: tuple[Assignment, ...] = ()


def assemble_pipeline(
    given: Iterable[Ingredient],
    base: str | os.PathLike[str] | None,
    torch_dtype: Any,
    device: Any,
    memory_limit: int | str | None,
    host_memory_limit: int | str | None,
    vram_limit: float | str | None,
    token: str | bool | None,
) -> tuple[Any, Components]:
    """Make a pipeline of files and folders; see `load_pipeline`.

    Args:
        base: the folder or the hub id of a pipeline that has what was not given.

    Returns:
        The pipeline and its components.
    """
    ingredients = gather(given)
    if base is not None and ingredients.pipeline is not None:
        raise ComponentError(f"base={os.fspath(base)!r} and {ingredients.pipeline} are a pipeline each: give only one")
    base = base if base is not None else ingredients.pipeline
    blueprint = _of_catalog(ingredients) if base is None else _of_base(base, ingredients, token)
    jobs = _jobs(blueprint, ingredients, vram_limit, token)
    options = {name: LoadOptions(for_component(torch_dtype, name), for_component(device, name)) for name in jobs}
    devices = {str(one.device or "cpu") for one in options.values()}
    limits = {place: limits_on(place, memory_limit, host_memory_limit) for place in devices}
    components = load_in_turn(
        [
            partial(job, replace(options[name], limits=limits[str(options[name].device or "cpu")]))
            for name, job in jobs.items()
        ]
    )
    pipeline_class = blueprint.pipeline_class
    absent = {name: None for name in _places(pipeline_class) if name not in components}
    settings = dict(blueprint.assignment.repository.settings)
    if "safety_checker" in absent and "requires_safety_checker" in inspect.signature(pipeline_class).parameters:
        settings["requires_safety_checker"] = False
    with construction():
        return pipeline_class(**components, **absent, **settings), components


def _of_catalog(given: Ingredients) -> Blueprint:
    """A published pipeline that the catalog knows."""
    assignment, *rivals = find_assignment(given)
    name, repository = assignment.name, assignment.repository
    pipeline_class = find_pipeline_class(repository.pipeline_class.rpartition(".")[2], name)
    if assignment.missing:
        wanted = ", ".join(f"{place} ({repository.components[place].model_class})" for place in assignment.missing)
        raise ComponentError(
            f"{given}: a {pipeline_class.__name__}, as in {name}, also needs {wanted}: give their files too, or "
            f"base={name!r} to take from there what is missing"
        )
    encoders = {place.replace("text_encoder", "tokenizer"): place for place in repository.components}
    others = [
        place
        for place, needed in _places(pipeline_class).items()
        if place not in repository.components
        and (encoders[place] in (*assignment.parts, *assignment.folders) if place in encoders else needed)
    ]
    return Blueprint(assignment, pipeline_class, name, False, tuple(others), tuple(rivals))


def _of_base(base: str | os.PathLike[str], given: Ingredients, token: str | bool | None) -> Blueprint:
    """A pipeline that the caller named, some of whose networks are replaced."""
    folder = model_folder(base, [], token=token)
    index = read_config(folder / "model_index.json")
    pipeline_class = find_pipeline_class(index.get("_class_name"), folder / "model_index.json")
    named = {name: f"{library}.{class_name}" for name, (library, class_name) in read_model_index(folder).items()}
    networks = {name: model_class for name, model_class in named.items() if _is_network(folder, name, model_class)}
    qualified = f"diffusers.{pipeline_class.__name__}"
    try:
        known = find_repository(os.fspath(base)).components
    except IdentificationError:
        known = {}
    components = {
        name: known[name]
        if name in known and known[name].model_class == model_class
        else relative(qualified, name, model_class)
        for name, model_class in networks.items()
    }
    parameters = inspect.signature(pipeline_class).parameters
    settings = {name: value for name, value in index.items() if name in parameters and not isinstance(value, list)}
    repository = Repository(qualified, components, (), settings)
    taken = [name for name in assign(str(base), repository, given).parts if name not in known]
    assignment = assign(str(base), repository, given, _configs(base, folder, taken, token))
    refuse_left_over(assignment)
    others = tuple(name for name in named if name not in networks)
    return Blueprint(assignment, pipeline_class, os.fspath(base), True, others)


def _configs(
    base: str | os.PathLike[str], folder: Path, names: Iterable[str], token: str | bool | None
) -> dict[str, Config]:
    """The configs that a pipeline has for networks; of one on a hub, only these files are fetched."""
    files = {name: folder / name / "config.json" for name in names}
    found: dict[str, Config] = {name: read_config(file) for name, file in files.items() if file.is_file()}
    absent = files.keys() - found.keys()
    if absent and not Path(base).is_dir():
        remote = open_remote(os.fspath(base), token=token)
        wanted = {name: f"{name}/config.json" for name in absent}
        found |= {name: remote.config(file) for name, file in wanted.items() if file in remote.repository.names}
    return found


def _jobs(
    blueprint: Blueprint, given: Ingredients, vram_limit: float | str | None, token: str | bool | None
) -> dict[str, Job]:
    """What loads each component, in the order of the pipeline's constructor."""
    assignment = blueprint.assignment
    jobs: dict[str, Job] = {}
    for name, cast in assignment.parts.items():
        jobs[name] = partial(load_bare, BareNetwork(name, cast.part.file, cast.candidate, cast.source(), vram_limit))
    for name, folder in assignment.folders.items():
        library, _, class_name = assignment.repository.components[name].model_class.rpartition(".")
        jobs[name] = partial(load_by_spec, ComponentSpec(name, library, class_name, folder.folder))
    places = _places(blueprint.pipeline_class)
    unused = [folder for folder in given.folders if folder not in assignment.folders.values()]
    for name in blueprint.others:
        chosen = _folder_for(name, [one for one in unused if one.folder.name == name or one.folder.name not in places])
        if chosen is not None:
            unused.remove(chosen)
            library, class_name = chosen.library, chosen.class_name
            if name == "processor":  # its folder also has the configs of what it is made of
                class_name = processor_class(chosen.folder) or class_name
            jobs[name] = partial(load_by_spec, ComponentSpec(name, library, class_name, chosen.folder))
    if unused:
        raise ComponentError(
            f"{'; '.join(map(str, unused))}: a {blueprint.pipeline_class.__name__} has no place for it: it has "
            f"{', '.join(places)}"
        )
    wanted = [*(assignment.missing if blueprint.named else ()), *blueprint.others]
    rest = [name for name in wanted if name not in jobs]
    if rest and blueprint.rivals:
        refuse_several(given, (assignment, *blueprint.rivals), f", whose {' and '.join(rest)} differ")
    if rest:
        source = _fetched(blueprint, rest, token)
        jobs |= {name: partial(load_by_spec, find_spec(source, name)) for name in rest}
    return {name: jobs[name] for name in places if name in jobs}


def _fetched(blueprint: Blueprint, names: list[str], token: str | bool | None) -> Path:
    """The folder of the pipeline that has what was not given."""
    try:
        return model_folder(blueprint.source, names, token=token)
    except DownloadError as error:
        raise DownloadError(
            f"{', '.join(names)} of {blueprint.source}, which was not given, cannot be fetched: {error}; or give "
            f"folders of your own, such as ModelConfig(path='.../{names[0]}')"
        ) from error


def _folder_for(place: str, folders: list[ComponentFolder]) -> ComponentFolder | None:
    """The folder that is called as a place is; else the first that holds what belongs there."""
    configs = _KINDS.get(re.sub(r"_\d+$", "", place), CONFIG_FILES)
    fitting = [one for one in folders if any((one.folder / config).is_file() for config in configs)]
    return next((one for one in fitting if one.folder.name == place), next(iter(fitting), None))


def _places(pipeline_class: Any) -> dict[str, bool]:
    """The components of a pipeline, and whether its constructor asks for each."""
    optional = pipeline_class._optional_components
    return {
        name: parameter.default is inspect.Parameter.empty and name not in optional
        for name, parameter in inspect.signature(pipeline_class).parameters.items()
        if parameter.default is inspect.Parameter.empty or name in optional
    }


def _is_network(folder: Path, name: str, model_class: str) -> bool:
    library, _, class_name = model_class.rpartition(".")
    found = resolve_class(ComponentSpec(name, library, class_name, folder))
    return is_diffusers_model(found) or is_transformers_model(found)
