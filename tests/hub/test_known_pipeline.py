"""What bare files lack comes from the published pipeline that they are of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lading import DownloadError, load_pipeline, shipped_model
from tests.hub.conftest import Run
from tests.hub.server import Hub
from tests.loading.networks import Case, in_layout, save

PARTS = {
    "unet": ("stable_diffusion", "diffusers.UNet2DConditionModel", "original", "model.diffusion_model."),
    "vae": ("autoencoder_kl", "diffusers.AutoencoderKL", "original", "first_stage_model."),
    "text_encoder": (
        "clip",
        "transformers.CLIPTextModel",
        "hub (text_model. prefix)",
        "cond_stage_model.transformer.",
    ),
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The networks of the shipped model in one file, called as a published one."""
    plain = load_pipeline("shapes")
    whole: dict[str, torch.Tensor] = {}
    for name, (family, model_class, layout, prefix) in PARTS.items():
        whole |= in_layout(Case(family, model_class, layout, {}, prefix), getattr(plain, name).state_dict())
    save(tmp_path / "stable-diffusion-v1-5.safetensors", whole)
    return tmp_path / "stable-diffusion-v1-5.safetensors"


def test_tokenizer_and_scheduler_are_fetched_and_no_weights(hub: Hub, run: Run, tmp_path: Path, bare: Path) -> None:
    name = "stable-diffusion-v1-5"
    shutil.copytree(shipped_model(), tmp_path / "hub" / name / name)
    done = run(
        f"pipeline = lading.load_pipeline({bare.name!r})\n"
        "print(type(pipeline.scheduler).__name__, len(pipeline.tokenizer), pipeline.safety_checker)"
    )
    assert done.stdout.split() == ["DDIMScheduler", "608", "None"], done.stderr
    fetched = hub.fetched()
    assert {file.partition("/")[0] for file in fetched} == {"model_index.json", "scheduler", "tokenizer"}


def test_without_a_hub_the_folders_that_are_missing_are_named(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("LADING_SKIP_DOWNLOAD", "1")
    with pytest.raises(DownloadError, match=r"scheduler, tokenizer of stable-diffusion-v1-5/.*ModelConfig\(path="):
        load_pipeline(bare)
