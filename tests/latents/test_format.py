"""Formats: from a folder, a file or an id; what they refuse; what a step costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lading import ComponentError, ShapeError, latent_format, load_pipeline, shipped_model
from lading.catalog import known_families
from lading.latents import FrameRule, LatentShape, make_latent_format, pack, unfold, unpack
from tests.latents.pipelines import numbers_of, published

PUBLISHED = sorted(
    {name for family in known_families() for part in family.architectures if part.latent for name in part.published}
)


def save_configs(folder: Path, **configs: dict[str, Any]) -> Path:
    """Write a pipeline folder of configs alone."""
    index = {name: ["diffusers", config["_class_name"]] for name, config in configs.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiffusionPipeline", **index}))
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def wan(**changes: Any) -> dict[str, Any]:
    config = published("WanTransformer3DModel", "Wan-AI/Wan2.1-T2V-14B")
    return {"_class_name": "WanTransformer3DModel", **config, **changes}


def wan_vae(name: str = "Wan-AI/Wan2.1-T2V-14B") -> dict[str, Any]:
    return {"_class_name": "AutoencoderKLWan", **published("AutoencoderKLWan", name)}


def test_the_shipped_model_makes_latents_of_an_eighth() -> None:
    shape = latent_format("shapes").shape(2, 64, 128)
    assert str(shape) == "latent  batch 2  channels 4  height 8  width 16"
    assert latent_format(shipped_model()) == latent_format("shapes")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_denoiser_has_a_format_offline(name: str) -> None:
    latents = latent_format(name)
    frames = None if latents.frames is None else latents.frames.first + 2 * latents.frames.period
    shape = latents.shape(1, 4 * latents.multiple, 2 * latents.multiple, frames)
    assert latents.pixels(shape).sizes["height"] == 4 * latents.multiple
    assert str(latents.multiple) in str(latents)


def test_a_folder_of_configs_tells_what_its_autoencoder_tells(tmp_path: Path) -> None:
    folder = save_configs(
        tmp_path, transformer=wan(in_channels=48, out_channels=48), vae=wan_vae("Wan-AI/Wan2.2-TI2V-5B")
    )
    latents = latent_format(folder)
    assert (latents.channels, latents.spatial, latents.multiple) == (48, 16, 32)
    shape = latents.shape(1, 704, 1280, 121)
    assert str(shape) == "latent  batch 1  channels 48  frames 31  height 44  width 80"
    assert shape.tokens == 31 * 22 * 40


def test_a_denoiser_and_an_autoencoder_of_different_models_are_refused(tmp_path: Path) -> None:
    folder = save_configs(tmp_path, transformer=wan(), vae=wan_vae("Wan-AI/Wan2.2-TI2V-5B"))
    with pytest.raises(
        ShapeError, match=r"denoiser makes 16 channels, and the autoencoder decodes 48: .* take both from one"
    ):
        latent_format(folder)


def test_a_checkpoint_file_tells_its_latents_from_its_header(tmp_path: Path) -> None:
    from lading.catalog.construction import build_on_meta

    network = build_on_meta("diffusers.WanTransformer3DModel", {**wan(), "num_layers": 1, "ffn_dim": 8})
    tensors = {
        name: torch.empty(value.shape, dtype=torch.float8_e4m3fn) for name, value in network.state_dict().items()
    }
    save_file(tensors, tmp_path / "wan.safetensors")
    assert latent_format(tmp_path / "wan.safetensors").shape(1, 480, 832, 81).shape == (1, 16, 21, 60, 104)


def test_an_id_that_nobody_published_is_refused_with_names_like_it() -> None:
    with pytest.raises(ComponentError, match=r"Qwen/Qwen-Imag: no such folder or file.*one of .*Qwen/Qwen-Image"):
        latent_format("Qwen/Qwen-Imag")


def test_a_model_without_a_known_denoiser_is_refused(tmp_path: Path) -> None:
    folder = save_configs(tmp_path, vae=wan_vae())
    with pytest.raises(
        ComponentError, match=r"holds diffusers\.AutoencoderKLWan, and the catalog knows the latents of none"
    ):
        latent_format(folder)


def test_all_that_is_wrong_with_a_size_is_said_at_once() -> None:
    message = (
        "batch 0 is too small: use 1 or more; height 720 is no multiple of 32: use 704 or 736; "
        "width 5 is no multiple of 32: use 32; num_frames 80 is not 4n+1: use 77 or 81"
    )
    with pytest.raises(ShapeError) as caught:
        latent_format("Wan-AI/Wan2.2-TI2V-5B").shape(0, 720, 5, 80)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [0, -8, 1, 65])
def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_do(size: int) -> None:
    with pytest.raises(ShapeError, match=r"height .* use \d+"):
        latent_format("shapes").shape(1, size, 64)


def test_frames_belong_to_films_and_films_need_them() -> None:
    with pytest.raises(ShapeError, match="num_frames 5 is for films"):
        latent_format("shapes").shape(1, 64, 64, 5)
    with pytest.raises(ShapeError, match=r"num_frames is missing: the model makes films of 8n\+1 frames"):
        latent_format("Lightricks/LTX-2").shape(1, 64, 64)


def test_a_latent_of_another_model_has_no_pixels_here() -> None:
    shape = latent_format("shapes").shape(1, 64, 64)
    with pytest.raises(ShapeError, match="the model's latents have 16 channels"):
        latent_format("black-forest-labs/FLUX.1-dev").pixels(shape)


def test_layers_of_a_picture_are_frames_and_a_plain_picture_has_one() -> None:
    assert latent_format("Qwen/Qwen-Image-Layered").shape(1, 64, 64, 5).sizes["frames"] == 5
    assert latent_format("Qwen/Qwen-Image").shape(1, 64, 64).sizes["frames"] == 1
    assert latent_format("Qwen/Qwen-Image-Layered").frames == FrameRule(1)


def test_frames_that_only_fill_a_token_are_counted_and_not_decoded() -> None:
    latents = latent_format("zai-org/CogVideoX1.5-5B")
    shape = latents.shape(1, 768, 1360, 81)
    assert (shape.sizes["frames"], shape.padding) == (22, 1)
    assert latents.pixels(shape).num_frames == 81


@pytest.mark.parametrize(
    ("model", "guidance"),
    {
        "stabilityai/stable-diffusion-xl-base-1.0": "batch",
        "latent-consistency/lcm-sdxl": "embedded",
        "black-forest-labs/FLUX.1-dev": "embedded",
        "black-forest-labs/FLUX.1-schnell": "passes",
        "Qwen/Qwen-Image": "passes",
        "hunyuanvideo-community/HunyuanVideo": "embedded",
        "Lightricks/LTX-2": "batch",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": "embedded",
        "MiniMax/MiniMax-H3": "none",
    }.items(),
)
def test_guidance_costs_a_batch_or_a_forward_or_nothing(model: str, guidance: str) -> None:
    latents = latent_format(model)
    frames = None if latents.frames is None else latents.frames.first
    shape = latents.shape(3, 64, 64, frames)
    assert latents.guidance == guidance
    assert latents.guided(shape).sizes["batch"] == (6 if guidance == "batch" else 3)
    assert latents.forwards == (2 if guidance == "passes" else 1)


def test_a_guided_step_of_the_shipped_model_is_as_its_format_says() -> None:
    pipeline = load_pipeline("shapes")
    seen: list[tuple[int, ...]] = []
    pipeline.unet.register_forward_pre_hook(lambda _unet, arguments: seen.append(tuple(arguments[0].shape)))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(["a star"] * 2, height=64, width=64, num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    latents = latent_format("shapes")
    assert seen == [latents.guided(latents.shape(2, 64, 64)).shape] * latents.forwards


def test_the_sound_of_another_model_is_refused() -> None:
    numbers = numbers_of("LTX2VideoTransformer3DModel")
    config = published("LTX2VideoTransformer3DModel", "Lightricks/LTX-2")
    with pytest.raises(ShapeError, match="128 channels of sound, and its autoencoder decodes 4 of 16 bins"):
        make_latent_format(numbers, config, None, {"latent_channels": 4})


def test_a_film_without_a_moment_of_sound_is_refused() -> None:
    audio = latent_format("Lightricks/LTX-2").audio
    assert audio is not None
    with pytest.raises(ShapeError, match="too short for a sound"):
        audio.shape(1, 1, frame_rate=1000.0)
    with pytest.raises(ShapeError, match=r"frame_rate 0\.0 is not positive"):
        audio.shape(1, 9, frame_rate=0.0)
    assert audio.seconds(audio.shape(1, 240, frame_rate=24.0)) == 10.0


def test_a_tensor_that_is_not_of_the_shape_is_refused() -> None:
    shape = LatentShape({"batch": 1, "channels": 4, "height": 2, "width": 2})
    with pytest.raises(ShapeError, match=r"latents of shape \(1, 4, 2, 3\): the shape says \(1, 4, 2, 2\)"):
        pack(torch.empty(1, 4, 2, 3), shape)
    with pytest.raises(ShapeError, match=r"tokens of shape \(1, 4\): the shape says \(1, 4, 4\)"):
        unpack(torch.empty(1, 4), shape)
    with pytest.raises(ShapeError, match="6 channels do not unfold by 2: use a multiple of 4"):
        unfold(torch.empty(1, 6, 2, 2), 2)


def test_formats_and_shapes_need_no_torch() -> None:
    program = (
        "import sys, lading; print(lading.latent_format('Lightricks/LTX-2').audio.shape(1, 121).tokens,"
        "any(name in sys.modules for name in ('torch', 'diffusers', 'numpy')))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["126", "False"]
