"""Pipelines out of a DDUF file: the same as out of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import export_folder_as_dduf

import lading
from lading import identify, load_component, load_components, load_model, load_pipeline, shipped_model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dduf") / "shapes.dduf"
    export_folder_as_dduf(file, shipped_model())
    return file


def draw(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images: torch.Tensor = pipeline(
        "a red circle", num_inference_steps=1, generator=generator, output_type="pt", guidance_scale=1
    ).images
    return images


def test_a_pipeline_draws_the_same_out_of_a_dduf_file_resident_and_under_a_limit(shapes: Path) -> None:
    expected = draw(load_pipeline("shapes"))
    pipeline = load_pipeline(shapes)
    assert torch.equal(draw(pipeline), expected)
    assert {record.name for record in pipeline.lading_components.records} == {
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    }
    assert shapes in pipeline.lading_components.records[-1].files
    assert torch.equal(draw(load_pipeline(shapes, memory_limit="100MB")), expected)


def test_components_come_one_by_one(shapes: Path) -> None:
    vae = load_component(shapes, "vae", torch_dtype="float16")
    expected = load_component("shapes", "vae", torch_dtype="float16").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vae.state_dict().items())
    assert load_component(shapes, "tokenizer")("a red circle") == load_component("shapes", "tokenizer")("a red circle")
    assert set(load_components(shapes, ["scheduler", "text_encoder"])) == {"scheduler", "text_encoder"}
    with pytest.raises(lading.ComponentError, match="no component 'controlnet'"):
        load_component(shapes, "controlnet")


def test_networks_in_it_are_recognised_with_their_configs(shapes: Path) -> None:
    found = identify(shapes)
    assert {one.prefix: one.model_class for one in found.candidates} == {
        "unet.": "diffusers.UNet2DConditionModel",
        "vae.": "diffusers.AutoencoderKL",
        "text_encoder.": "transformers.CLIPTextModel",
    }
    assert not found.problems
    vae = next(one for one in found.candidates if one.component == "vae")
    assert vae.config["scaling_factor"] == 0.2981
    assert not vae.unverified
    model = load_model(diffusers.AutoencoderKL, shapes, torch_dtype="float16")
    expected = load_component("shapes", "vae", torch_dtype="float16").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert str(lading.latent_format(shapes).shape(1, 64, 64)) == str(lading.latent_format("shapes").shape(1, 64, 64))
