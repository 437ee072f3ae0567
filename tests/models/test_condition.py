"""Pictures and masks become the tokens that a ControlNet was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lading
from lading.models import BlockwiseControl, QwenImageBlockwiseControlNet, attach, condition_tokens
from lading.models.condition import _pack
from tests.models.tiny import controlnet, draw, noise, picture, pipeline, saved


def pixels(image: Image.Image) -> torch.Tensor:
    """A picture from -1 to 1, as one frame."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None, :, None]


def test_a_picture_is_encoded_normalised_and_packed_as_the_pipeline_does_it() -> None:
    made = pipeline()
    with torch.no_grad():
        latent = made.vae.encode(pixels(picture())).latent_dist.mode()[:, :, 0]
    for channel in range(16):
        latent[:, channel] -= made.vae.config.latents_mean[channel]
        latent[:, channel] /= made.vae.config.latents_std[channel]
    expected = made._pack_latents(latent, 1, 16, 4, 6)
    torch.testing.assert_close(condition_tokens(made, picture()), expected, rtol=1e-4, atol=1e-4)


def test_packing_is_the_pipelines() -> None:
    latent = noise(1, 2, 17, 4, 6)
    assert torch.equal(_pack(latent), pipeline()._pack_latents(latent, 2, 17, 4, 6))


def test_a_mask_blackens_what_it_covers_and_becomes_the_last_four_channels() -> None:
    made, image = pipeline(), picture()
    covered = np.zeros((32, 48), dtype=np.uint8)
    covered[:, 32:] = 255
    tokens = condition_tokens(made, image, Image.fromarray(covered))
    assert tokens.shape == (1, 6, 68)
    black = np.asarray(image) * (covered == 0)[..., None]
    assert torch.equal(tokens[..., :64], condition_tokens(made, Image.fromarray(black)))
    kept = tokens[..., 64:].reshape(2, 3, 4)
    assert torch.equal(kept, torch.tensor([1.0, 1.0, 0.0])[:, None].expand(2, 3, 4))


def test_the_size_is_the_pictures_or_what_is_asked_for() -> None:
    made = pipeline()
    assert condition_tokens(made, picture(width=50, height=33)).shape == (1, 6, 64)
    larger = condition_tokens(made, picture(), picture(1).convert("L"), height=64, width=96)
    assert larger.shape == (1, 24, 68)


def test_grey_pictures_and_pictures_with_alpha_are_taken_for_their_colours() -> None:
    made, image = pipeline(), picture()
    opaque = image.copy()
    opaque.putalpha(7)
    assert torch.equal(condition_tokens(made, opaque), condition_tokens(made, image))
    grey = image.convert("L")
    assert torch.equal(condition_tokens(made, grey), condition_tokens(made, grey.convert("RGB")))


def test_an_inpainting_controlnet_is_recognised_loaded_and_draws(tmp_path: Path) -> None:
    made = pipeline()
    plain = draw(made)
    file = saved(controlnet(condition_channels=68), tmp_path)
    (candidate,) = lading.identify(file).candidates
    network = lading.load_model(QwenImageBlockwiseControlNet, file, config=candidate.config, torch_dtype="float32")
    mask = Image.new("L", (48, 32), 255)
    with attach(made, BlockwiseControl(network, condition_tokens(made, picture(), mask))):
        assert not torch.equal(draw(made), plain)
