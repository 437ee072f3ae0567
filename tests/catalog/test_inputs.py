"""Example inputs: with them, every class runs on tensors without data."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from lading.catalog.architecture import Config, Extent
from lading.catalog.construction import build_on_meta, make_inputs
from lading.memory.trace import trace
from tests.catalog.networks import architectures
from tests.catalog.test_families import examples

ARCHITECTURES = architectures()
TRACED = [name for name, (_, architecture) in ARCHITECTURES.items() if architecture.example_inputs is not None]
EXTENT = Extent(batch=2, height=128, width=64, num_frames=9, tokens=8)


def lend(controlnet: Any, config: Config) -> None:
    """Give Z-Image's ControlNet what the transformer lends it, the one network that calls itself with another's."""
    sizes = {name: config[name] for name in ("dim", "n_heads", "n_kv_heads", "n_refiner_layers")}
    transformer = {**ARCHITECTURES["diffusers.ZImageTransformer2DModel"][1].published["Tongyi-MAI/Z-Image"], **sizes}
    lender = build_on_meta("diffusers.ZImageTransformer2DModel", {**transformer, "n_layers": 1})
    type(controlnet).from_transformer(controlnet, lender)


@pytest.mark.parametrize("name", TRACED)
def test_a_network_runs_with_its_example_inputs(name: str) -> None:
    architecture = ARCHITECTURES[name][1]
    assert architecture.example_inputs is not None
    for config in examples(architecture):
        network = build_on_meta(name, config).eval()
        if architecture.lent:
            lend(network, config)
        inputs = architecture.example_inputs(config, EXTENT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library's forward thinks of its own arguments
            traced = trace(network, kwargs=make_inputs(inputs))
        assert traced.calls
        assert traced.activation_bytes > 0
        named = dict(network.named_parameters(remove_duplicate=False))
        assert {call.leaf for call in traced.calls} <= {path.rpartition(".")[0] for path in named}
