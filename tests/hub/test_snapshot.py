"""Models by their hub id, from a real server on this machine."""

from __future__ import annotations

import shutil

import pytest

from tests.hub.conftest import Run, last_line
from tests.hub.server import Hub


def test_a_component_is_fetched_alone_and_then_found_offline(hub: Hub, run: Run) -> None:
    program = "print(type(lading.load_component('org/name', 'vae')).__name__)"
    first = run(program)
    assert first.stdout.split() == ["AutoencoderKL"], first.stderr
    assert hub.fetched() == {"model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    hub.log.clear()
    again = run(program, HF_HUB_OFFLINE="1")
    assert again.stdout.split() == ["AutoencoderKL"], again.stderr
    assert hub.log == []


def test_a_pipeline_is_fetched_in_one_format_and_the_variant_asked_for(hub: Hub, run: Run) -> None:
    done = run("lading.load_pipeline('org/name', variant='fp16', revision='main')")
    assert done.returncode == 0, done.stderr
    weights = {name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".ckpt"))}
    assert weights == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("lading.load_component('org/absent', 'vae')", "no such model"),
        ("lading.load_component('org/name', 'vae', revision='nowhere')", "no such revision"),
    ],
)
def test_what_the_hub_lacks_is_a_download_error(run: Run, call: str, reason: str) -> None:
    failed = run(call)
    last = last_line(failed)
    assert last.startswith("lading.errors.DownloadError: ")
    assert reason in last


def test_a_hub_that_cannot_be_reached_is_a_download_error(run: Run) -> None:
    failed = run("lading.load_component('org/name', 'vae')", HF_ENDPOINT="http://127.0.0.1:9")
    assert last_line(failed).startswith("lading.errors.DownloadError: org/name: http://127.0.0.1:9 cannot be reached")
    assert "HF_HUB_OFFLINE=1" in last_line(failed)


def test_model_config_fetches_its_pattern_into_its_folder(run: Run) -> None:
    program = """
config = lading.ModelConfig(model_id="org/name", origin_file_pattern="vae/*.safetensors", local_model_path="base")
config.download_if_necessary()
print(*config.path)
"""
    done = run(program)
    names = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    assert done.stdout.split() == [f"base/org/name/vae/{name}" for name in names], done.stderr


def test_a_pipeline_in_a_subfolder_of_a_gated_model_comes_with_a_token(hub: Hub, run: Run) -> None:
    shutil.copytree(hub.root / "org/name", hub.root / "org/nested/inner")
    hub.tokens = {"org/nested": "hf_secret"}
    program = "print(lading.load_component('org/nested', 'scheduler', subfolder='inner', token={!r}).config.beta_start)"
    done = run(program.format("hf_secret"))
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"inner/model_index.json", "inner/scheduler/scheduler_config.json"}
    assert "the model is gated" in last_line(run(program.format(False)))
