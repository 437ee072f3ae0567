"""What is explained of a model is true of it, and is told without a weight and without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lading
from lading import ComponentError, ShapeError, explain, shipped_model
from lading.catalog import known_families
from lading.cli import main
from tests.hub.conftest import Run as RunProgram
from tests.hub.conftest import environment, hub, run  # noqa: F401 - fixtures
from tests.report.conftest import Recorded

KNOWN = sorted({name for family in known_families() for name in family.repositories})
NO_PICTURES = {
    "black-forest-labs/FLUX.1-Redux-dev": "diffusers.ReduxImageEncoder",
    "MiniMax/MiniMax-Music3": "diffusers.MiniMaxMusic3Transformer1DModel",
    "MiniMaxAI/MiniMax-Music3": "diffusers.MiniMaxMusic3Transformer1DModel",
}
"""Pipelines that make embeddings or music -> a network of theirs."""


def test_what_is_explained_of_the_shipped_model_is_what_happens_in_it(limited: Recorded) -> None:
    explanation = explain("shapes")
    told = {axes["name"]: axes for axes in ({"name": n, **a} for s in explanation.stages for n, a in s.tensors.items())}
    calls = {call.label: call for call in limited.run.calls}
    encoder, drawn = calls["text_encoder.forward"], calls["pipeline.prepare_latents"]
    for name, tensor in {
        "tokens": encoder.given[0],
        "embeddings": encoder.made[0],
        "latent": drawn.made[0],
        "what it is shown": calls["unet.forward, step 1"].given[0],
        "pixels": calls["vae.decode"].made[0],
    }.items():
        assert {axis: size for axis, size in told[name].items() if axis != "name"} == dict(
            zip(tensor.axes, tensor.shape, strict=True)
        )
    records = {record.name: record for record in limited.pipeline.lading_components.records}
    assert {part.name: (part.loader, part.model_class) for part in explanation.parts} == {
        name: (record.loader, record.model_class) for name, record in records.items()
    }
    for part in explanation.parts:
        assert bool(part.tensors) == bool(records[part.name].tensors)


def test_it_reads_as_it_should() -> None:
    text = str(explain("shapes"))
    for words in (
        "shapes  diffusers.StableDiffusionPipeline, from its folder",
        "(8.57 MB, float16) of diffusion_pytorch_model.safetensors.",
        "a vocabulary of 608 pieces of words, 32",
        "       latent  batch 1  channels 4  height 8  width 8",
        "48 times fewer",
        "Height and width are multiples of 8.",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", sorted(set(KNOWN) - NO_PICTURES.keys()))
def test_every_pipeline_that_the_catalog_knows_is_explained(name: str) -> None:
    explanation = explain(name)
    assert explanation.place == "catalog"
    assert explanation.pipeline_class
    assert explanation.extent is not None
    latents = lading.latent_format(name)
    extent = explanation.extent
    assert extent.latent == latents.shape(1, extent.height, extent.width, extent.num_frames)
    assert "None" not in str(explanation)
    shown = json.loads(json.dumps(explanation.as_dict()))
    assert shown["latent"] == dict(extent.latent.sizes)
    assert [stage["text"] for stage in shown["stages"]] == [stage.text for stage in explanation.stages]


@pytest.mark.parametrize("name", NO_PICTURES)
def test_a_pipeline_that_makes_no_pictures_has_its_parts_explained(name: str) -> None:
    explanation = explain(name)
    assert explanation.extent is None and not explanation.stages
    assert explanation.pipeline_class is not None and explanation.pipeline_class in str(explanation)
    assert NO_PICTURES[name] in str(explanation)


def test_other_sizes_are_explained_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--height", "720", "--width", "1280", "--num-frames", "81", "--json"]
    assert main(["explain", "Wan-AI/Wan2.1-T2V-14B-Diffusers", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["latent"] == {"batch": 1, "channels": 16, "frames": 21, "height": 90, "width": 160}
    assert shown["tokens"] == 75600
    assert shown["pixels"] == {"batch": 1, "frames": 81, "height": 720, "width": 1280}


def test_what_cannot_be_explained_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShapeError, match="height 512 is half a size: give the width too"):
        explain("shapes", height=512)
    with pytest.raises(ShapeError, match="use 64 or 72"):
        explain("shapes", height=65, width=64)
    assert main(["explain", "/nowhere"]) == 1
    assert "no such folder" in capsys.readouterr().err
    folder = shutil.copytree(shipped_model(), tmp_path / "broken")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({**config, "latent_channels": 16}))
    with pytest.raises(ShapeError, match="different models"):
        explain(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(ComponentError, match="model_index"):
        explain(folder)


def test_a_pipeline_without_a_denoiser_that_anybody_knows_has_its_parts_explained(tmp_path: Path) -> None:
    folder = shutil.copytree(shipped_model(), tmp_path / "odd", ignore=shutil.ignore_patterns("unet"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet1DModel"]}))
    explanation = explain(folder)
    assert explanation.extent is None and not explanation.stages
    assert "unet" in str(explanation) and "text_encoder" in str(explanation)


def test_a_model_on_a_hub_is_explained_where_it_is(run: RunProgram) -> None:  # noqa: F811
    done = run("import sys; print(lading.explain('org/name')); sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "org/name  diffusers.StableDiffusionPipeline, from the configs and headers on the hub"
    )
    local = str(explain("shapes")).splitlines()
    assert "       embeddings  batch 1  tokens 32  features 128" in local
    assert "       latent  batch 1  channels 4  height 8  width 8" in done.stdout
    assert "286 tensors" in done.stdout
    offline = run("lading.explain('org/name')", HF_HUB_OFFLINE="1")
    assert "remote requests are turned off" in offline.stderr


@pytest.mark.parametrize("model", ["shapes", "Qwen/Qwen-Image"])
def test_no_torch_is_needed(model: str) -> None:
    program = "import sys; from lading.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program, "explain", model], check=True, stdout=subprocess.DEVNULL)


def test_a_checkpoint_file_is_explained_by_its_header() -> None:
    explanation = explain(shipped_model() / "unet" / "diffusion_pytorch_model.safetensors")
    assert explanation.place == "file"
    assert [part.name for part in explanation.parts] == ["unet"]
    assert explanation.stages[0].tensors["latent"]["channels"] == 4
