"""Latents and tokens are those that the pipelines of diffusers really allocate, for every family."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lading import ShapeError
from lading.catalog import known_families
from lading.latents import LatentShape, fold, make_latent_format, pack, unfold, unpack
from tests.latents.pipelines import CASES, Built, build, config_of, numbers_of

PACKED = [name for name in CASES if numbers_of(CASES[name].denoiser[0]).packed]
COUNTED = [name for name, case in CASES.items() if case.patches is not None]
ELSEWHERE = {"ErnieImageTransformer2DModel", "MiniMaxH3Transformer3DModel", "WanAnimate2Transformer3DModel"}
"""Denoisers whose pipelines draw latents in other ways: tested below, but the last, which needs another card."""


def extents(built: Built) -> st.SearchStrategy[tuple[int, int, int, int | None]]:
    """Batch, height, width and frames that a model can make."""
    rule, multiple = built.format.frames, built.format.multiple
    sides = st.integers(1, 5).map(lambda number: number * multiple)
    frames = st.none() if rule is None else st.integers(0, 5).map(lambda n: rule.first + n * rule.period)
    return st.tuples(st.integers(1, 2), sides, sides, frames)


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of which no two elements are equal."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def test_every_family_with_latents_is_tested() -> None:
    denoisers = {a.model_class.partition(".")[2] for f in known_families() for a in f.architectures if a.latent}
    assert denoisers == {case.denoiser[0] for case in CASES.values()} | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_latent_is_the_one_that_the_pipeline_draws(name: str, data: st.DataObject) -> None:
    built = build(name)
    batch, height, width, frames = data.draw(extents(built))
    assert not built.refuses(height, width)
    shape = built.format.shape(batch, height, width, frames)
    drawn = built.draw(batch, height, width, frames)
    assert shape.held == drawn.shape
    assert shape.nbytes("float16") == drawn.nbytes
    pixels = built.format.pixels(shape)
    assert (pixels.batch, pixels.height, pixels.width, pixels.num_frames) == (batch, height, width, frames)


@pytest.mark.parametrize("name", CASES)
def test_a_config_that_leaves_out_what_is_usual_gives_the_same_format(name: str) -> None:
    case, built = CASES[name], build(name)
    numbers = numbers_of(case.denoiser[0])
    audio = config_of(built.pipeline.audio_vae) if hasattr(built.pipeline, "audio_vae") else None
    assert make_latent_format(numbers, case.denoiser[1], case.autoencoder[1], audio) == built.format


@pytest.mark.parametrize("name", CASES)
def test_what_the_pipeline_refuses_or_changes_is_refused_with_sizes_that_it_takes(name: str) -> None:
    built = build(name)
    multiple, rule = built.format.multiple, built.format.frames
    frames = None if rule is None else rule.first + rule.period
    sides = sorted({8, 16, 24, 40, multiple - 1, multiple, multiple + 8, 2 * multiple, 2 * multiple + 8})
    for height, width in product(sides, repeat=2):
        try:
            shape = built.format.shape(1, height, width, frames)
        except ShapeError as error:
            for axis, number in _suggestions(str(error)):
                size = {"height": 2 * multiple, "width": 2 * multiple} | {axis: number}
                near = built.format.shape(1, size["height"], size["width"], frames)
                assert built.draw(1, size["height"], size["width"], frames).shape == near.held
            if not built.refuses(height, width) and min(height, width) >= multiple:
                assert _differs(built, height, width, frames)
        else:
            assert not built.refuses(height, width)
            assert built.draw(1, height, width, frames).shape == shape.held


def _suggestions(message: str) -> list[tuple[str, int]]:
    found = re.findall(r"(height|width) -?\d+ is no multiple of \d+: use (\d+)(?: or (\d+))?", message)
    assert found, message
    return [(axis, int(number)) for axis, *numbers in found for number in numbers if number]


def _differs(built: Built, height: int, width: int, frames: int | None) -> bool:
    """Whether the pipeline makes another size than was asked for, or one that is cut into no whole tokens."""
    drawn, multiple = built.draw(1, height, width, frames), built.format.multiple
    if built.format.layout.packed:
        smaller = built.format.shape(1, height // multiple * multiple, width // multiple * multiple, frames)
        return drawn.shape == smaller.held
    sizes = dict(zip(built.format.axes, drawn.shape, strict=True))
    patch, factor = built.format.layout.patch["height"], built.format.spatial
    made = (sizes["height"] // patch * patch * factor, sizes["width"] // patch * patch * factor)
    return made != (height, width)


FILMS = [name for name in CASES if numbers_of(CASES[name].denoiser[0]).temporal is not None]


@pytest.mark.parametrize("name", FILMS)
def test_frames_that_are_refused_are_those_that_the_pipeline_would_not_make(name: str) -> None:
    built = build(name)
    rule, side = built.format.frames, built.format.multiple
    assert rule is not None
    axis = built.format.axes.index("frames")
    for frames in range(1, 26):
        if rule.allows(frames):
            continue
        with pytest.raises(ShapeError, match=re.escape(str(rule))):
            built.format.shape(1, side, side, frames)
        below = built.format.shape(1, side, side, rule.nearest(frames)[0])
        drawn = built.draw(1, side, side, frames)
        assert drawn.shape == below.held if built.format.layout.packed else drawn.shape[axis] == below.sizes["frames"]


@pytest.mark.parametrize("name", COUNTED)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_tokens_are_as_many_as_the_denoiser_makes(name: str, data: st.DataObject) -> None:
    built = build(name)
    shape = built.format.shape(*data.draw(extents(built)))
    assert built.case.patches is not None
    assert built.case.patches(getattr(built.pipeline, built.case.name), shape) == shape.tokens


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_latents_are_packed_as_the_pipeline_packs_them_and_come_back(name: str, data: st.DataObject) -> None:
    built = build(name)
    extent = data.draw(extents(built))
    shape = built.format.shape(*extent)
    latents = numbered(shape.shape)
    tokens = pack(latents, shape)
    assert torch.equal(unpack(tokens, shape), latents)
    if built.case.pipeline != "Ideogram4Pipeline":  # which draws tokens, and never packs any
        assert torch.equal(tokens, packed_by(built, latents, shape))
    theirs, axes = unpacked_by(built, tokens, shape, extent)
    assert torch.equal(theirs.permute([axes.index(axis) for axis in shape.axes]), latents)


def packed_by(built: Built, latents: torch.Tensor, shape: LatentShape) -> torch.Tensor:
    """Tokens, by the pipeline."""
    sizes, pipeline = shape.sizes, built.pipeline
    flat = (sizes["batch"], sizes["channels"], sizes["height"], sizes["width"])
    if "LTX" in built.case.pipeline or "Flux2" in built.case.pipeline:
        packed = pipeline._pack_latents(latents)
    elif "Layered" in built.case.pipeline:
        packed = pipeline._pack_latents(latents, *flat, sizes["frames"])
    else:
        packed = pipeline._pack_latents(latents, *flat)
    assert isinstance(packed, torch.Tensor)
    return packed


def unpacked_by(built: Built, tokens: torch.Tensor, shape: LatentShape, extent: Any) -> tuple[torch.Tensor, list[str]]:
    """Latents, by the pipeline, with the axes in which it gives them."""
    pipeline, kind, sizes = built.pipeline, built.case.pipeline, shape.sizes
    _, height, width, frames = extent
    picture, film = ["batch", "channels", "height", "width"], ["batch", "channels", "frames", "height", "width"]
    if kind == "Ideogram4Pipeline":  # which does it within `__call__`, in these words
        rows, columns, patch = shape.grid["height"], shape.grid["width"], pipeline.patch_size
        z = tokens.view(len(tokens), rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return z.reshape(shape.shape), picture
    if "LTX" in kind:
        return pipeline._unpack_latents(tokens, sizes["frames"], sizes["height"], sizes["width"]), film
    if "Flux2" in kind:
        positions = pipeline._prepare_latent_ids(torch.empty(shape.shape))
        return pipeline._unpack_latents_with_ids(tokens, positions), picture
    if "Layered" in kind:
        return pipeline._unpack_latents(tokens, height, width, frames - 1, pipeline.vae_scale_factor), film
    if kind == "Krea2Pipeline":
        return pipeline._unpack_latents(tokens, height, width)[:, :, 0], picture
    unpacked = pipeline._unpack_latents(tokens, height, width, pipeline.vae_scale_factor)
    return unpacked, film if "frames" in shape.axes else picture


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 2), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_latents_are_folded_as_flux2_and_ernie_fold_them(batch: int, rows: int, columns: int) -> None:
    from diffusers import ErnieImagePipeline

    pipelines = (build("FLUX.2").pipeline, ErnieImagePipeline)
    latents = numbered((batch, 32, 2 * rows, 2 * columns))
    folded = fold(latents, build("FLUX.2").format.folded)
    assert torch.equal(unfold(folded, 2), latents)
    for pipeline in pipelines:
        assert torch.equal(folded, pipeline._patchify_latents(latents))
        assert torch.equal(latents, pipeline._unpatchify_latents(folded))
