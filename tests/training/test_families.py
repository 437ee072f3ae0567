"""Pipelines of every kind train as they draw: what the denoiser is given comes from the pipeline itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import lading
from lading import ComponentError
from lading.loading.components import load_components
from lading.training import Settings, train_model
from lading.training.conditions import alike, signature
from lading.training.denoising import Denoiser
from lading.training.parts import examine
from lading.training.rehearsal import DenoiserRules, Extent, Rehearsal
from tests.training.tiny import FAMILIES, write_data

Model = Callable[[str], Path]
CPU = torch.device("cpu")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def rehearse(folder: Path | str) -> tuple[Rehearsal, DenoiserRules]:
    parts = examine(folder)
    rehearsal = Rehearsal(parts, load_components(parts.folder, [*parts.encoders, "scheduler"]), torch.float32, CPU)
    return rehearsal, rehearsal.rules()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_of_each_family_trains_and_stock_diffusers_loads_it(
    name: str, tiny_model: Model, pictures: Path, tmp_path: Path
) -> None:
    folder = tiny_model(name)
    settings = Settings(steps=3, batch_size=4, resolution=64, learning_rate=1e-2, rank=2, weight_decay=0.0)
    outcome = train_model(folder, pictures, tmp_path / "out", settings)
    found = losses(tmp_path / "out")
    assert len(found) == 3 and all(0 < loss < 10 for loss in found)
    tensors = lading.load_state_dict(outcome.files[0])
    changed = [bool(tensor.any()) for key, tensor in tensors.items() if "lora_B" in key]
    assert sum(changed) > len(changed) / 2
    pipeline: Any = lading.load_pipeline(folder)
    denoiser = pipeline.components[examine(folder).denoiser.name]
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    pipeline.load_lora_weights(tmp_path / "out")
    assert before.keys() < {key.replace(".base_layer", "") for key in denoiser.state_dict()}


def test_films_train_with_their_frames(tiny_model: Model, tmp_path: Path) -> None:
    films = write_data(tmp_path / "films", count=2, frames=5)
    settings = Settings(steps=1, batch_size=2, resolution=64, num_frames=5)
    outcome = train_model(tiny_model("Wan"), films, tmp_path / "out", settings)
    assert outcome.files[0].is_file()
    entries = [lading.open_checkpoint(file) for file in (tmp_path / "out/cache").rglob("*.safetensors")]
    assert sorted(entry["mean"].shape for entry in entries if "mean" in entry) == [(1, 16, 2, 8, 8)] * 2


RULES = {
    "SDXL": ("sample", "number", False, False),
    "SD3": ("hidden_states", "number", False, False),
    "FLUX.1": ("hidden_states", "share", False, False),
    "Qwen-Image": ("hidden_states", "share", False, False),
    "Wan": ("hidden_states", "number", False, False),
    "Z-Image": ("x", "reversed share", True, True),
}
"""As the pipelines' sources say: the latent's argument, the timestep, the sign, and whether latents are a list."""


@pytest.mark.parametrize("name", FAMILIES)
def test_how_a_denoiser_is_called_is_found_out_as_its_pipeline_says(name: str, tiny_model: Model) -> None:
    folder = tiny_model(name)
    _, rules = rehearse(folder)
    assert (rules.latents, rules.timestep_rule, rules.negated, rules.listed) == RULES[name]
    vae = json.loads((folder / "vae/config.json").read_text())
    if vae.get("latents_mean") is not None:
        assert rules.shift == pytest.approx(vae["latents_mean"], rel=1e-5)
        assert rules.scale == pytest.approx(vae["latents_std"], rel=1e-5)
    else:
        assert rules.shift == pytest.approx([vae["shift_factor"] or 0.0] * 4)
        assert rules.scale == pytest.approx([1 / vae["scaling_factor"]] * 4)


def test_conditions_are_those_that_a_stock_pipeline_gives_its_denoiser() -> None:
    stock = StableDiffusionPipeline.from_pretrained(lading.shipped_model(), safety_checker=None)
    rehearsal, _ = rehearse("shapes")
    text, _ = stock.encode_prompt("a red star", CPU, 1, False)
    conditions = rehearsal.conditions("a red star", Extent(64, 64))
    assert torch.equal(conditions.arguments["encoder_hidden_states"], text)


def test_texts_of_several_lengths_in_a_batch_predict_what_each_does_alone(tiny_model: Model) -> None:
    folder = tiny_model("Qwen-Image")
    rehearsal, rules = rehearse(folder)
    parts = examine(folder)
    transformer = lading.load_component(folder, "transformer")
    denoiser = Denoiser(transformer, rules, 1000, torch.float32, CPU)
    conditions = [rehearsal.conditions(caption, Extent(64, 64)) for caption in ("red", "a very large blue square")]
    assert len({signature(each) for each in conditions}) == 2
    together = alike(conditions)
    assert len({signature(each) for each in together}) == 1
    shapes = [parts.latents.shape(batch, 64, 64) for batch in (1, 2)]
    noisy, times = (
        torch.randn(shapes[1].shape, generator=torch.Generator().manual_seed(0)),
        torch.tensor([250.0, 750.0]),
    )
    with torch.no_grad():
        both = denoiser(noisy, times, together, shapes[1])
        alone = [denoiser(noisy[n : n + 1], times[n : n + 1], [conditions[n]], shapes[0]) for n in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_timestep_to_each_token_is_given_where_the_pipeline_gives_one(tiny_model: Model, tmp_path: Path) -> None:
    """As Wan 2.2 does in its model of 5B."""
    folder = tmp_path / "wan"
    shutil.copytree(tiny_model("Wan"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": True}))
    rehearsal, rules = rehearse(folder)
    assert rehearsal.conditions("red", Extent(64, 32, 5)).timestep_shape == (2 * 4 * 2,)
    assert rules.timestep_rule == "number"
    data = write_data(tmp_path / "data", count=2)
    assert train_model(folder, data, tmp_path / "out", Settings(steps=1, batch_size=2, resolution=32)).steps == 1


def test_sdxl_is_told_the_size_and_the_crop_of_each_picture(tiny_model: Model) -> None:
    rehearsal, _ = rehearse(tiny_model("SDXL"))
    told = rehearsal.conditions("red", Extent(64, 128, original=(100, 300), crop=(0, 7))).arguments
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[100, 300, 0, 7, 64, 128]]


def test_pipelines_that_start_from_more_than_words_are_refused_before_anything_is_loaded(
    tiny_model: Model, tmp_path: Path
) -> None:
    folder = tiny_model("FLUX.1")
    edited = tmp_path / "kontext"
    edited.mkdir()
    index = json.loads((folder / "model_index.json").read_text())
    (edited / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxKontextPipeline"}))
    for part in ("transformer", "vae"):
        (edited / part).mkdir()
        (edited / part / "config.json").write_text((folder / part / "config.json").read_text())
    with pytest.raises(ComponentError, match="FluxKontextPipeline cannot be trained here: it starts from more than"):
        train_model(edited, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_with_two_denoisers_is_refused_by_name(tiny_model: Model, tmp_path: Path) -> None:
    folder = tiny_model("Wan")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text((folder / part / "config.json").read_text())
    with pytest.raises(ComponentError, match="WanPipeline cannot be trained here: it has the denoisers transformer"):
        examine(tmp_path)


def test_a_denoiser_predicts_through_lading_what_it_predicts_in_its_pipeline(tiny_model: Model) -> None:
    """One step of Euler from a given latent, by the pipeline and by hand."""
    for name in ("FLUX.1", "Qwen-Image", "Z-Image", "SD3"):
        folder = tiny_model(name)
        rehearsal, rules = rehearse(folder)
        parts = examine(folder)
        pipeline: Any = lading.load_pipeline(folder)
        pipeline.set_progress_bar_config(disable=True)
        shape = parts.latents.shape(1, 64, 64)
        latent = torch.randn(shape.shape, generator=torch.Generator().manual_seed(1))
        held = lading.latents.pack(latent, shape) if shape.layout.packed else latent
        options: dict[str, Any] = {"guidance_scale": 0.0 if name == "Z-Image" else 1.0, "height": 64, "width": 64}
        options |= {"num_inference_steps": 1, "sigmas": [0.5], "latents": held, "output_type": "latent"}
        drawn = pipeline("red", **options).images
        drawn = lading.latents.unpack(drawn, shape) if shape.layout.packed else drawn
        timestep, sigma = pipeline.scheduler.timesteps[0], pipeline.scheduler.sigmas[0]
        denoiser = Denoiser(pipeline.components[parts.denoiser.name], rules, 1000, torch.float32, CPU)
        with torch.no_grad():
            conditions = [rehearsal.conditions("red", Extent(64, 64))]
            predicted = denoiser(latent, timestep.reshape(1), conditions, shape)
        torch.testing.assert_close(drawn, latent - sigma * predicted, rtol=1e-4, atol=1e-5)
