"""Structure beats the table: any depth, width, number of heads or channels, and any optional part is told exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lading.catalog import Shapes
from lading.catalog.construction import build_on_meta, network_shapes, verify
from lading.catalog.recognition import identify_tensors
from tests.catalog.networks import TRANSFORMERS, architectures
from tests.catalog.test_families import told

ARCHITECTURES = architectures()


UNETS = {"diffusers.UNet2DConditionModel", "diffusers.ControlNetModel"}
"""Their levels are of few kinds, all published ones of which are tried elsewhere."""


def test_every_transformer_and_controlnet_is_among_them() -> None:
    denoisers = {name for name, (_, one) in ARCHITECTURES.items() if one.component in ("transformer", "controlnet")}
    latents = {name for name, (_, one) in ARCHITECTURES.items() if one.latent is not None}
    assert TRANSFORMERS.keys() == (denoisers | latents) - UNETS


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_hundred_random_configs_are_recovered_exactly(name: str) -> None:
    architecture = ARCHITECTURES[name][1]

    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(TRANSFORMERS[name])
    def recover(config: dict[str, Any]) -> None:
        network = network_shapes(build_on_meta(name, config))
        (candidate,) = [one for one in identify_tensors(network.shapes).candidates if one.model_class == name]
        assert candidate.layout == architecture.own_layout
        expected = told(config, architecture.unverified)
        assert {key: told(candidate.config, ())[key] for key in expected} == expected

    recover()


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if ARCHITECTURES[name][1].layouts])
def test_values_come_back_through_every_layout_and_the_layout_is_told(name: str) -> None:
    architecture = ARCHITECTURES[name][1]

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(TRANSFORMERS[name], st.sampled_from(list(architecture.layouts)))
    def return_trip(config: dict[str, Any], layout: str) -> None:
        shapes = network_shapes(build_on_meta(name, config)).shapes
        generator = torch.Generator().manual_seed(0)
        tensors = {key: torch.randint(-99, 99, shape, generator=generator).short() for key, shape in shapes.items()}
        key_map = architecture.key_map(layout, shapes)
        assert key_map is not None
        assume(not key_map.inverse.steps(shapes)[1])  # an original code base has not every option of the class
        in_file = dict(key_map.inverse.tensors(tensors))
        file_shapes = {key: tuple(tensor.shape) for key, tensor in in_file.items()}
        back = architecture.key_map(layout, file_shapes)
        assert back is not None
        found = dict(back.tensors(in_file))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        candidates = {(one.model_class, one.layout): one for one in identify_tensors(file_shapes).candidates}
        assert (name, layout) in candidates
        assert verify(architecture, candidates[name, layout].config, layout, file_shapes) == []
        assert architecture.infer_config(Shapes(back.shapes(file_shapes))) == architecture.infer_config(Shapes(shapes))

    return_trip()
