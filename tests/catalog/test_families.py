"""Every family: published configs come back from shapes, signatures are the classes', key maps are bijections."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

import diffusers
import pytest

from lading import IdentificationError
from lading.catalog import Shapes, component_config, find_repository
from lading.catalog.architecture import Architecture
from lading.catalog.construction import NetworkShapes, build_on_meta, network_shapes
from lading.catalog.registry import shipped_family
from lading.catalog.structure import name_pattern, patterns_of, shipped_signatures
from tests.catalog.networks import architectures, shallow

ARCHITECTURES = architectures()
NAMES = list(ARCHITECTURES)


def examples(architecture: Architecture) -> list[dict[str, Any]]:
    """The distinct published configs and examples, shallow."""
    found: list[dict[str, Any]] = []
    for config in (*architecture.published.values(), *architecture.examples):
        if shallow(dict(config)) not in found:
            found.append(shallow(dict(config)))
    return found


@cache
def networks(name: str) -> list[tuple[dict[str, Any], NetworkShapes]]:
    """Each example with what its network holds."""
    configs = examples(ARCHITECTURES[name][1])
    return [(config, network_shapes(build_on_meta(name, config))) for config in configs]


def saved(architecture: Architecture, network: NetworkShapes) -> dict[str, tuple[int, ...]]:
    """The tensors that a file of this network holds: not those that it leaves out because they are tied."""
    tied = name_pattern(architecture.tied)
    return {
        name: shape
        for name, shape in network.shapes.items()
        if not (name in network.tied and tied is not None and tied.fullmatch(name))
    }


def told(config: Any, unverified: Any, at: str = "") -> Any:
    """A config without what shapes cannot tell, tuples and lists alike."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if f"{at}{key}" not in unverified}
        return {key: told(value, unverified, f"{at}{key}.") for key, value in kept.items()}
    return list(config) if isinstance(config, tuple) else config


def agrees(published: Any, inferred: Any) -> bool:
    """Whether all that was inferred is as published."""
    if isinstance(inferred, dict):
        return all(agrees(published[key], value) for key, value in inferred.items())
    return bool(published == inferred)


NOT_IN_LAYOUT = {("diffusers.UNet2DConditionModel", "original"): ("time_embedding.cond_proj.weight",)}
"""UNets with distilled guidance were published in diffusers' names only."""


@pytest.mark.parametrize("name", NAMES)
def test_a_published_config_comes_back_from_the_shapes_of_its_network(name: str) -> None:
    architecture = ARCHITECTURES[name][1]
    assert networks(name), "a class that nothing is built of proves nothing"
    for config, network in networks(name):
        inferred = architecture.infer_config(Shapes(saved(architecture, network)))
        assert agrees(told(config, architecture.unverified), told(inferred, architecture.unverified))
        again = network_shapes(build_on_meta(name, {**config, **inferred}))
        assert again == network


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_signatures_are_those_of_the_classes(name: str) -> None:
    architecture = ARCHITECTURES[name][1]
    signatures = [signature for signature in shipped_signatures() if signature.model_class == name]
    assert [signature.layout for signature in signatures] == [architecture.own_layout, *architecture.layouts]
    for signature in signatures:
        assert signature.beside == architecture.beside
        for _, network in networks(name):
            shapes = saved(architecture, network)
            key_map = architecture.key_map(signature.layout, shapes)
            in_file = shapes if key_map is None else key_map.inverse.shapes(shapes)
            assert signature.fit(patterns_of(in_file)).is_full


@pytest.mark.parametrize("name", [name for name in NAMES if ARCHITECTURES[name][1].layouts])
def test_key_maps_are_bijections_on_names_and_shapes(name: str) -> None:
    architecture = ARCHITECTURES[name][1]
    for layout in architecture.layouts:
        for _, network in networks(name):
            shapes = saved(architecture, network)
            there = architecture.key_map(layout, shapes)
            assert there is not None
            steps, left = there.inverse.steps(shapes)
            assert not set(left).difference(NOT_IN_LAYOUT.get((name, layout), ()))
            shapes = {key: shape for key, shape in shapes.items() if key not in left}
            in_file = there.inverse.shapes(shapes)
            assert len(in_file) == sum(len(step.targets) for step in steps)
            back = architecture.key_map(layout, in_file)
            assert back is not None
            assert back.shapes(in_file) == shapes


REPOSITORIES = {
    model_id: repository
    for name in dict.fromkeys(family for family, _ in ARCHITECTURES.values())
    for model_id, repository in shipped_family(name).repositories.items()
}


def components_of(pipeline: Any) -> set[str]:
    """What a pipeline is made of, by the names that it has for it."""
    if hasattr(pipeline, "default_blocks_name"):
        blocks = getattr(diffusers, pipeline.default_blocks_name)()
        return {component.name for component in blocks.expected_components}
    return set(inspect.signature(pipeline.__init__).parameters)


@pytest.mark.parametrize("model_id", REPOSITORIES)
def test_a_repository_names_a_pipeline_and_the_config_of_each_of_its_networks(model_id: str) -> None:
    repository = find_repository(model_id)
    assert repository == REPOSITORIES[model_id]
    library, _, pipeline = repository.pipeline_class.rpartition(".")
    wanted = components_of(getattr(importlib.import_module(library), pipeline))
    for name, component in repository.components.items():
        assert name in wanted
        config = component_config(component)
        assert shallow(dict(config)) in examples(ARCHITECTURES[component.model_class][1])


def test_an_unknown_repository_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(IdentificationError, match=r"nobody/nothing.*black-forest-labs/FLUX\.1-dev"):
        find_repository("nobody/nothing")


def test_a_module_under_the_lora_targets_is_in_every_network_that_names_them() -> None:
    for name, (_, architecture) in ARCHITECTURES.items():
        for target in architecture.lora_targets:
            names = [path for _, network in networks(name) for path in network.shapes]
            assert any(path.removesuffix(".weight").endswith(target) for path in names), (name, target)
