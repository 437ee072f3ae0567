"""Latents that pipelines draw in other ways than `prepare_latents`: ERNIE-Image, MiniMax-H3, and the sound of LTX-2."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.minimax_h3.before_denoise import patchify_video_latents
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import align_num_frames, video_latent_num_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from lading import ShapeError
from lading.catalog.construction import build_on_meta
from lading.latents import LatentFormat, make_latent_format, pack, unpack
from tests.latents.pipelines import build, config_of, numbers_of

_ERNIE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_layers": 1,
    "ffn_hidden_size": 32,
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "text_in_dim": 16,
    "rope_axes_dim": (8, 12, 12),
}


@cache
def ernie() -> tuple[Any, LatentFormat]:
    """A pipeline that draws, with a small random transformer, and its format."""
    denoiser = diffusers.ErnieImageTransformer2DModel(**_ERNIE)
    vae = build_on_meta("diffusers.AutoencoderKLFlux2", {})
    pipeline = diffusers.ErnieImagePipeline(denoiser, vae, None, None, diffusers.FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    numbers = numbers_of("ErnieImageTransformer2DModel")
    return pipeline, make_latent_format(numbers, config_of(denoiser), config_of(vae))


def draw(pipeline: Any, batch: int, height: int, width: int) -> torch.Tensor:
    """Run one step from given embeddings, and return its latents."""
    text = [torch.zeros(4, int(str(_ERNIE["text_in_dim"])))] * batch
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the scheduler hands numpy a tensor of sigmas
        drawn = pipeline(prompt_embeds=text, height=height, width=width, **options).images
    assert isinstance(drawn, torch.Tensor)
    return drawn


@pytest.mark.parametrize("extent", [(1, 16, 48), (2, 32, 16), (1, 64, 64)])
def test_ernie_image_draws_the_latent_that_its_format_says(extent: tuple[int, int, int]) -> None:
    pipeline, latents = ernie()
    assert draw(pipeline, *extent).shape == latents.shape(*extent).held


@pytest.mark.parametrize("extent", [(1, 24, 16), (1, 16, 8)])
def test_what_ernie_image_refuses_is_refused(extent: tuple[int, int, int]) -> None:
    pipeline, latents = ernie()
    with pytest.raises(ValueError, match="divisible"):
        draw(pipeline, *extent)
    with pytest.raises(ShapeError):
        latents.shape(*extent)


@cache
def minimax() -> tuple[Any, LatentFormat]:
    """MiniMax-H3's autoencoder, and its format."""
    vae = build_on_meta("diffusers.AutoencoderKLMiniMaxH3", {})
    numbers = numbers_of("MiniMaxH3Transformer3DModel")
    return vae, make_latent_format(numbers, {"in_channels": 24, "patch_size": (1, 2, 2)}, config_of(vae))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 400))
def test_minimax_h3_makes_the_latents_and_rows_that_its_format_says(rows: int, columns: int, frames: int) -> None:
    vae, latents = minimax()
    chunks = (vae.config.clip_length, vae.tokens_chunk_size)
    aligned = align_num_frames(frames, *chunks)
    assert latents.frames is not None
    assert latents.frames.allows(frames) == (aligned == frames)
    assert aligned in (frames, *latents.frames.nearest(frames))
    shape = latents.shape(1, 32 * rows, 32 * columns, aligned)
    assert shape.sizes["frames"] == video_latent_num_frames(aligned, *chunks)
    assert shape.sizes["height"] * vae.spatial_compression_ratio == 32 * rows
    drawn = torch.arange(len(shape)).reshape(shape.shape)
    tokens = pack(drawn, shape)
    assert torch.equal(tokens.reshape(-1, tokens.shape[2]), patchify_video_latents(drawn, (1, 2, 2)))
    assert torch.equal(unpack(tokens, shape), drawn)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 40).map(lambda n: 8 * n + 1), st.sampled_from([16.0, 24.0, 25.0, 29.97]))
def test_the_sound_of_ltx2_is_the_one_that_the_pipeline_draws(batch: int, frames: int, rate: float) -> None:
    built = build("LTX-2")
    pipeline, audio = built.pipeline, built.format.audio
    assert audio is not None
    shape = audio.shape(batch, frames, rate)
    per_second = (
        pipeline.audio_sampling_rate / pipeline.audio_hop_length / pipeline.audio_vae_temporal_compression_ratio
    )
    config = pipeline.audio_vae.config
    drawn = pipeline.prepare_audio_latents(
        batch,
        num_channels_latents=config.latent_channels,
        audio_latent_length=round(frames / rate * per_second),  # as `__call__` reckons it
        num_mel_bins=config.mel_bins,
        dtype=torch.float32,
        device="cpu",
    )
    assert drawn.shape == shape.held
    sound = torch.arange(len(shape)).reshape(shape.shape)
    assert torch.equal(pack(sound, shape), pipeline._pack_audio_latents(sound))
    unpacked = pipeline._unpack_audio_latents(pack(sound, shape), shape.sizes["frames"], shape.sizes["bins"])
    assert torch.equal(unpack(pack(sound, shape), shape), unpacked)
