"""Models by their hub id, from a real server on this machine."""

from __future__ import annotations

import shutil

import pytest

from lading.hub.selection import is_weight, wanted_files
from tests.hub.conftest import NO_SOCKET, Run, last_line
from tests.hub.server import COMMIT, Hub


def test_a_component_is_fetched_alone(hub: Hub, run: Run) -> None:
    done = run("print(type(lading.load_component('org/name', 'scheduler')).__name__)")
    assert done.stdout.split() == ["DDIMScheduler"], done.stderr
    assert hub.fetched() == {"model_index.json", "scheduler/scheduler_config.json"}


def test_a_pipeline_is_fetched_in_what_it_uses_and_then_loads_without_a_socket(hub: Hub, run: Run) -> None:
    """Of the variant asked for where there is one, in one format; no folder that `model_index.json` does not name."""
    folder = hub.root / "org/name"
    shutil.copytree(folder / "unet", folder / "unet_ema")
    (folder / "vae" / "original").mkdir()
    for name in (
        "unet/model.msgpack",
        "unet/lora.safetensors",
        "vae/original/x.safetensors",
        "text_encoder/x.bin",
    ):
        (folder / name).write_bytes(b"not wanted")
    program = "print(type(lading.load_pipeline('org/name', variant='fp16', revision='main').unet).__name__)"
    done = run(program)
    assert done.stdout.split() == ["UNet2DConditionModel"], done.stderr
    fetched = hub.fetched()
    assert {name for name in fetched if is_weight(name)} == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert {name.partition("/")[0] for name in fetched} == {
        "model_index.json", "unet", "text_encoder", "vae", "tokenizer", "scheduler"
    }  # fmt: skip
    assert "unet/model.msgpack" not in fetched
    hub.log.clear()
    again = run(NO_SOCKET + program.replace("'main'", f"'{COMMIT}'"), HF_HUB_OFFLINE="1")
    assert again.stdout.split() == ["UNet2DConditionModel"], again.stderr
    assert hub.log == []


def test_of_shards_and_a_whole_file_only_those_come_that_load() -> None:
    shards = [f"t/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = [
        "t/model.safetensors",
        *shards,
        "t/model.safetensors.index.json",
        "t/pytorch_model.bin",
        "t/other.safetensors",
    ]
    assert wanted_files(names, ["t"], None) == [*shards, "t/model.safetensors.index.json"]
    assert wanted_files(["t/other.safetensors", "t/another.bin"], ["t"], None) == ["t/other.safetensors"]
    fp16 = ["t/model.safetensors.index.fp16.json", *(name.replace("model-", "model.fp16-") for name in shards)]
    assert wanted_files([*names, *fp16], ["t"], "fp16") == fp16


@pytest.mark.parametrize(
    ("call", "reason"),
    [("'org/absent'", "no such model"), ("'org/name', revision='nowhere'", "no such revision")],
)
def test_what_the_hub_lacks_is_a_download_error(run: Run, call: str, reason: str) -> None:
    last = last_line(run(f"from lading.hub import model_folder; model_folder({call})"))
    assert last.startswith("lading.errors.DownloadError: ")
    assert reason in last


def test_a_model_that_is_no_pipeline_says_how_to_fetch_it(hub: Hub, run: Run) -> None:
    (hub.root / "org/name/model_index.json").unlink()
    failed = run("from lading.hub import model_folder; model_folder('org/name')")
    assert "org/name: no pipeline in the diffusers layout: it holds " in last_line(failed)
    assert "fetch its files by name" in last_line(failed)


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
