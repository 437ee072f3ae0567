"""A whole pipeline: the class that the folder names, and pictures equal to diffusers' own, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from lading import ComponentError, load_pipeline, shipped_model


def picture(pipeline: Any, **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a large green star on a navy background"
    images: torch.Tensor = pipeline(
        prompt, generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="pt", **options
    ).images
    return images


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_pictures_equal_those_of_stock_diffusers(dtype: torch.dtype | None) -> None:
    ours = load_pipeline("shapes", torch_dtype=dtype)
    theirs = StableDiffusionPipeline.from_pretrained(shipped_model(), dtype=dtype)
    assert type(ours) is type(theirs)
    assert torch.equal(picture(ours), picture(theirs))
    assert torch.equal(picture(ours, height=128, width=64), picture(theirs, height=128, width=64))


def test_it_is_a_plain_pipeline_with_the_config_that_diffusers_gives_it() -> None:
    ours, theirs = load_pipeline("shapes"), DiffusionPipeline.from_pretrained(str(shipped_model()))
    assert dict(ours.config) == dict(theirs.config)
    assert ours.components.keys() == theirs.components.keys()
    assert ours.lading_components.unet is ours.unet


def test_a_saved_copy_loads_again_bit_for_bit(tmp_path: Path) -> None:
    ours = load_pipeline("shapes")
    ours.save_pretrained(tmp_path)
    assert torch.equal(picture(load_pipeline(tmp_path)), picture(ours))


def test_another_pipeline_class_over_the_same_parts(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_model(), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert type(load_pipeline(folder)).__name__ == "StableDiffusionImg2ImgPipeline"


@pytest.mark.parametrize("name", ["NoSuchPipeline", "UNet2DConditionModel", 7, None])
def test_a_class_that_is_no_pipeline_is_an_error(tmp_path: Path, name: object) -> None:
    folder = Path(shutil.copytree(shipped_model(), tmp_path / "model"))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ComponentError, match="names the pipeline"):
        load_pipeline(folder)


def test_a_folder_that_is_no_pipeline_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"model_index\.json"):
        load_pipeline(tmp_path)
