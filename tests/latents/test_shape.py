"""Shapes: axes are named, frames follow their rules, tokens are counted."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lading import ShapeError
from lading.latents import FrameRule, LatentShape, PixelShape, TokenLayout

RULES = [FrameRule(1), FrameRule(4), FrameRule(6), FrameRule(8), FrameRule(17, first=5, latents=5, first_latents=2)]
rules = st.sampled_from(RULES)


@given(rules, st.integers(0, 200))
def test_frames_that_are_allowed_come_back_from_their_latent(rule: FrameRule, periods: int) -> None:
    frames = rule.first + periods * rule.period
    assert rule.allows(frames)
    assert rule.pixel_frames(rule.latent_frames(frames)) == frames


@given(rules, st.integers(-50, 400))
def test_frames_that_are_not_allowed_are_refused_with_the_nearest_that_are(rule: FrameRule, frames: int) -> None:
    assume(not rule.allows(frames))
    near = rule.nearest(frames)
    with pytest.raises(ShapeError, match=f"num_frames {frames} is not .* use {' or '.join(map(str, near))}"):
        rule.latent_frames(frames)
    assert all(rule.allows(number) for number in near)
    between = range(min(near[0], frames), max(near[-1], frames) + 1)
    assert [number for number in between if rule.allows(number)] == list(near)


def test_a_rule_of_frames_reads_as_people_write_it() -> None:
    assert [str(rule) for rule in RULES] == ["n+1", "4n+1", "6n+1", "8n+1", "17n+5"]


def test_a_latent_that_belongs_to_no_film_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"4 frames belongs to no film of 17n\+5 frames: use one of 5n\+2"):
        RULES[-1].pixel_frames(4)
    with pytest.raises(ShapeError, match="0 frames"):
        FrameRule(4).pixel_frames(0)


def test_axes_are_named_and_positive() -> None:
    with pytest.raises(ShapeError, match="no axis"):
        LatentShape({"depth": 1})
    with pytest.raises(ShapeError, match="at least 1"):
        LatentShape({"batch": 0})


def test_tokens_that_do_not_divide_a_latent_are_refused() -> None:
    with pytest.raises(ShapeError, match="height is 3: tokens of 2 do not divide it"):
        LatentShape({"batch": 1, "channels": 4, "height": 3, "width": 4}, TokenLayout({"height": 2, "width": 2}))


def test_tokens_are_counted_with_the_padding_that_the_denoiser_adds() -> None:
    sizes = {"batch": 2, "channels": 16, "height": 10, "width": 14}
    plain = LatentShape(sizes, TokenLayout({"height": 2, "width": 2}))
    padded = LatentShape(sizes, TokenLayout({"height": 2, "width": 2}, multiple=32))
    assert (plain.tokens, padded.tokens) == (35, 64)
    assert plain.packed == padded.packed == (2, 35, 64)


def test_shapes_read_as_sentences() -> None:
    shape = LatentShape({"batch": 1, "channels": 16, "frames": 21, "height": 90, "width": 160})
    assert str(shape) == "latent  batch 1  channels 16  frames 21  height 90  width 160"
    assert str(PixelShape(1, 720, 1280, 81)) == "pixels  batch 1  frames 81  height 720  width 1280"
    assert PixelShape(2, 64, 32).sizes == {"batch": 2, "height": 64, "width": 32}
