"""What bare files lack comes from the published pipeline that they are of, or from one that is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lading import DownloadError, load_pipeline, shipped_model
from lading.hub.huggingface import HuggingFace
from tests.hub.server import Hub
from tests.loading.networks import CLIP, UNET, VAE, Case, in_layout, random_weights, save

PARTS = {
    "unet": Case("stable_diffusion", "diffusers.UNet2DConditionModel", "original", UNET, "model.diffusion_model."),
    "vae": Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE, "first_stage_model."),
    "text_encoder": Case(
        "clip", "transformers.CLIPTextModel", "hub (text_model. prefix)", CLIP, "cond_stage_model.transformer."
    ),
}
PUBLISHED = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The networks of a pipeline in one file, called as a published one."""
    whole: dict[str, torch.Tensor] = {}
    for case in PARTS.values():
        whole |= in_layout(case, random_weights(case))
    save(tmp_path / "stable-diffusion-v1-5.safetensors", whole)
    return tmp_path / "stable-diffusion-v1-5.safetensors"


@pytest.fixture
def home(hub: Hub, source: HuggingFace, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub that this process takes for Hugging Face's, while its cache is empty."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return hub


def test_tokenizer_and_scheduler_are_fetched_once_and_no_weights(
    home: Hub, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shipped_model(), tmp_path / "hub" / PUBLISHED)
    pipeline = load_pipeline(bare, token=False)
    assert (type(pipeline.scheduler).__name__, len(pipeline.tokenizer)) == ("DDIMScheduler", 608)
    assert pipeline.safety_checker is None
    assert {name.partition("/")[0] for name in home.fetched()} == {"model_index.json", "scheduler", "tokenizer"}
    home.log.clear()
    monkeypatch.setenv("LADING_SKIP_DOWNLOAD", "1")
    assert len(load_pipeline(bare).tokenizer) == 608
    assert home.log == []


def test_without_a_hub_the_folders_that_are_missing_are_named(
    home: Hub, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADING_SKIP_DOWNLOAD", "1")
    with pytest.raises(DownloadError, match=r"tokenizer, scheduler of stable-diffusion-v1-5/.*ModelConfig\(path="):
        load_pipeline(bare)


def test_a_pipeline_on_the_hub_gives_its_configs_and_what_is_missing(home: Hub, tmp_path: Path) -> None:
    case = Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE)
    weights = random_weights(case)
    save(tmp_path / "ae.safetensors", in_layout(case, weights))
    config = tmp_path / "hub" / "org" / "name" / "vae" / "config.json"
    changed = {**json.loads(config.read_text()), "scaling_factor": 0.5, "norm_num_groups": 32}
    config.write_text(json.dumps(changed))
    pipeline = load_pipeline(tmp_path / "ae.safetensors", base="org/name", token=False)
    assert pipeline.vae.config["scaling_factor"] == 0.5
    assert torch.equal(pipeline.vae.state_dict()["quant_conv.weight"], weights["quant_conv.weight"])
    assert not [name for name in home.fetched() if name.startswith("vae/") and name != "vae/config.json"]
