"""Latent shapes agree with what diffusers allocates, and bad sizes are refused with good ones named."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lading import ShapeError, load_pipeline
from lading.latents import LatentShape, latent_shape_of


@cache
def shapes() -> Any:
    return load_pipeline("shapes")


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_the_shape_is_the_one_that_the_pipeline_allocates(batch: int, rows: int, columns: int) -> None:
    pipeline = shapes()
    shape = latent_shape_of(pipeline.unet.config, pipeline.vae.config, batch, 8 * rows, 8 * columns)
    latents = pipeline.prepare_latents(
        batch, pipeline.unet.config.in_channels, 8 * rows, 8 * columns, torch.float16, "cpu", torch.Generator()
    )
    assert shape.shape == latents.shape
    assert shape.axes == ("batch", "channels", "height", "width")
    assert shape.nbytes("float16") == latents.nbytes


@pytest.mark.parametrize("size", [0, -8, 1, 65])
def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_do(size: int) -> None:
    with pytest.raises(ShapeError, match=r"use \d+ or \d+"):
        latent_shape_of({"in_channels": 4}, {"block_out_channels": [1, 1, 1, 1]}, 1, size, 64)


def test_axes_are_named_and_positive() -> None:
    with pytest.raises(ShapeError, match="no axis"):
        LatentShape({"depth": 1})
    with pytest.raises(ShapeError, match="at least 1"):
        LatentShape({"batch": 0})
