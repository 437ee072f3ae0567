"""What is predicted, from which noise, by what is trained: objectives, precision, and runs that would teach nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers import UniPCMultistepScheduler as UniPC
from PIL import Image
from safetensors.torch import load_file

import lading
from lading import ComponentError, LadingError
from lading.training import Settings, Watcher, train_model
from lading.training.freezing import trainable_parameters
from lading.training.loop import begin
from lading.training.objectives import Diffusion, DynamicShift, Flow, make_objective
from tests.training.tiny import write_data

Model = Callable[[str], Path]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_diffusion_predicts_what_the_schedulers_config_says(prediction: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")
    objective = make_objective(scheduler, Settings())
    sample, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1, 500, 999])
    task = objective.task(sample, noise, times)
    assert torch.equal(task.noisy, scheduler.add_noise(sample, noise, times))
    velocity = scheduler.get_velocity(sample, noise, times)
    expected = {"epsilon": noise, "v_prediction": velocity, "sample": sample}[prediction]
    assert torch.equal(task.target, expected) and torch.equal(task.weights, torch.ones(3))


@pytest.mark.parametrize(("prediction", "divisor"), [("epsilon", 0.0), ("v_prediction", 1.0)])
def test_min_snr_weighs_as_its_paper_says(prediction: str, divisor: float) -> None:
    """Equal to min(SNR, 5) / SNR for epsilon, and min(SNR, 5) / (SNR + 1) for velocity."""
    scheduler = DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=True)
    objective = make_objective(scheduler, Settings(weighting="min-snr"))
    times = torch.arange(1000)
    weights = objective.task(torch.zeros(1000, 1), torch.zeros(1000, 1), times).weights
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(weights[:900], (snr.clamp(max=5) / (snr + divisor))[:900], rtol=1e-3, atol=1e-5)
    assert weights.isfinite().all(), "also where all is noise"


def test_flow_matching_goes_from_the_sample_to_the_noise() -> None:
    objective = make_objective(FlowMatchEulerDiscreteScheduler(shift=3.0), Settings())
    assert isinstance(objective, Flow)
    sample, noise = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    task = objective.task(sample, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(task.noisy, torch.stack([sample[0], noise[1]]))
    assert torch.equal(task.target, noise - sample) and task.timesteps.tolist() == [0, 1000]


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPC(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ],
)
def test_noise_levels_are_shifted_as_the_schedulers_own_are(scheduler: Any) -> None:
    objective = make_objective(scheduler, Settings(timesteps="uniform"))
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    level = torch.rand(1, generator=generators[0])[0]
    torch.testing.assert_close(objective.draw(generators[1], 16), 3 * level / (1 + 2 * level))


def test_noise_levels_that_depend_on_the_size_are_those_that_the_scheduler_draws_with() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    objective = make_objective(scheduler, Settings())
    assert isinstance(objective, Flow) and isinstance(objective.shift, DynamicShift)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    levels = torch.tensor([0.2, 0.5, 0.9])
    expected = scheduler.time_shift(mu, 1.0, levels)
    torch.testing.assert_close(objective.shift(levels, 1024), expected)


def test_what_does_not_go_with_a_scheduler_is_refused() -> None:
    flow, diffusion = FlowMatchEulerDiscreteScheduler(), DDPMScheduler()
    with pytest.raises(LadingError, match="weighting 'min-snr' is none for flow matching: use none or sigma-sqrt"):
        make_objective(flow, Settings(weighting="min-snr"))
    with pytest.raises(LadingError, match="weighting 'cosmap' is none for diffusion: use none or min-snr"):
        make_objective(diffusion, Settings(weighting="cosmap"))
    with pytest.raises(LadingError, match="timesteps 'mode' are for flow matching"):
        make_objective(diffusion, Settings(timesteps="mode"))
    assert isinstance(make_objective(EulerDiscreteScheduler(), Settings()), Diffusion)
    with pytest.raises(ComponentError, match="prediction_type 'strange': denoisers are trained to predict"):
        make_objective(EulerDiscreteScheduler.from_config({"prediction_type": "strange"}), Settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0 is too small"),
        ({"learning_rate": -1.0}, "learning_rate -1.0 is not positive"),
        ({"caption_dropout": 2.0}, "caption_dropout 2.0 is no share"),
        ({"ema": 1.0}, "ema 1.0 is no decay"),
        ({"method": "textual-inversion"}, "needs a token"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LadingError, match=message):
        Settings(**options)


def test_settings_survive_json() -> None:
    settings = Settings(target_modules=("to_q",), validation_prompts=("a", "b"), betas=(0.9, 0.99))
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_an_optimizer_of_parameters_without_data_is_refused() -> None:
    with lading.skip_model_initialization():
        network = torch.nn.Linear(2, 2)
    with pytest.raises(LadingError, match="weight has no data yet: load the weights before the optimizer is made"):
        begin(trainable_parameters(network), Settings(), torch.float32, "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_trained_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    network = torch.nn.Linear(2, 2, dtype=dtype)
    with pytest.raises(LadingError, match=r"weight is b?float16: what is trained is held in float32"):
        begin(trainable_parameters(network), Settings(), dtype, "cpu")


def test_nothing_to_train_is_refused() -> None:
    network = torch.nn.Linear(2, 2)
    lading.freeze(network)
    with pytest.raises(LadingError, match="nothing is trainable"):
        begin(trainable_parameters(network), Settings(), torch.float32, "cpu")


def test_a_run_whose_trained_parameters_are_not_those_that_compute_stops_at_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another library's offloading has put copies in their place: nothing would be trained, silently."""
    from lading.training import subjects

    def copies(network: torch.nn.Module, *args: Any) -> dict[str, torch.nn.Parameter]:
        return {name: torch.nn.Parameter(each.detach().clone()) for name, each in add_lora(network, *args).items()}

    add_lora = lading.add_lora
    monkeypatch.setattr(subjects, "add_lora", copies)
    with pytest.raises(LadingError, match="step 1: no gradient reaches any of the 112 trainable parameters"):
        train_model("shapes", pictures, tmp_path, Settings(steps=2))


def test_activations_that_are_computed_again_give_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        settings = Settings(steps=2, batch_size=2, gradient_checkpointing=checkpointing, rank=2)
        out = train_model("shapes", pictures, tmp_path / str(checkpointing), settings, cache=tmp_path / "cache")
        found.append(load_file(out.files[0]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_with_adapters_in_float32(dtype: str, tiny_model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", count=2)
    settings = Settings(steps=2, batch_size=2, dtype=dtype, resolution=64, rank=2)
    outcome = train_model(tiny_model("FLUX.1"), data, tmp_path / "out", settings)
    tensors = load_file(outcome.files[0])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    state = json.loads((tmp_path / "out/checkpoints/step-000002/state.json").read_text())
    assert (state["scaler"] is None) == (dtype == "bfloat16")


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    """Noise belongs to a batch's number and place, so the two runs see other noise; the law is of the loss's scale."""
    data = write_data(tmp_path / "data", count=4)
    for name, sizes in (("one", (4, 1)), ("two", (1, 4))):
        settings = Settings(steps=1, batch_size=sizes[0], accumulate=sizes[1], learning_rate=1e-3)
        train_model("shapes", data, tmp_path / name, settings, cache=tmp_path / "cache")
    one, two = (losses(tmp_path / name)[0] for name in ("one", "two"))
    assert 0.2 < one / two < 5


def test_an_average_is_what_is_saved_and_drawn(pictures: Path, tmp_path: Path) -> None:
    settings = Settings(steps=3, batch_size=2, ema=0.99, learning_rate=1e-2, rank=2)
    outcome = train_model("shapes", pictures, tmp_path, settings)
    saved = load_file(outcome.files[0])
    state = tmp_path / "checkpoints/step-000003"
    averages, trained = load_file(state / "average.safetensors"), load_file(state / "trained.safetensors")
    names = {key.removeprefix("unet."): key for key in saved}
    for name, average in averages.items():
        assert torch.equal(saved[names[name.replace(".default", "")]], average)
    assert any(not torch.equal(averages[name], trained[name]) for name in averages)


def test_validation_prompts_are_drawn_into_a_grid_without_the_text_encoders(pictures: Path, tmp_path: Path) -> None:
    """The last grid is what stock diffusers draws with the saved adapter from the same seed."""
    settings = Settings(
        steps=2, batch_size=2, learning_rate=1e-2, validation_prompts=("a red star", "a blue circle"),
        validate_every=1, validation_steps=2, validation_guidance=3.0,
    )  # fmt: skip
    train_model("shapes", pictures, tmp_path, settings)
    grids = sorted((tmp_path / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step-000001.png", "step-000002.png"]
    pipeline: Any = lading.load_pipeline("shapes")
    pipeline.load_lora_weights(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    sheet = Image.open(grids[-1])
    assert sheet.size == (128, 64)
    for number, prompt in enumerate(settings.validation_prompts):
        generator = torch.Generator().manual_seed(number)
        drawn = pipeline(prompt, guidance_scale=3.0, num_inference_steps=2, generator=generator).images[0]
        assert sheet.crop((64 * number, 0, 64 * number + 64, 64)).tobytes() == drawn.convert("RGB").tobytes()


def test_a_word_is_learnt_and_stock_diffusers_reads_it(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", word="<thing>")
    settings = Settings("textual-inversion", 2, 2, token="<thing>", initial_word="red", learning_rate=1e-1, vectors=2)
    outcome = train_model("shapes", data, tmp_path / "out", settings)
    learned = load_file(outcome.files[0])["<thing>"]
    assert learned.shape == (2, 128)
    pipeline: Any = lading.load_pipeline("shapes")
    embedding = pipeline.text_encoder.get_input_embeddings().weight
    start = embedding[pipeline.tokenizer("red").input_ids[1]].detach()
    assert not torch.equal(learned[0], start) and torch.dist(learned[0], start) < 5
    pipeline.load_textual_inversion(tmp_path / "out")
    rows = pipeline.text_encoder.get_input_embeddings().weight[-2:]
    assert torch.equal(rows, learned.to(rows.dtype))


def test_a_word_that_no_caption_has_or_that_is_known_is_refused(pictures: Path, tmp_path: Path) -> None:
    settings = Settings("textual-inversion", token="<thing>")
    with pytest.raises(LadingError, match="none of the 4 captions has the word '<thing>'"):
        train_model("shapes", pictures, tmp_path, settings)
    settings = Settings("textual-inversion", token="<thing>", initial_word="zebra")
    data = write_data(tmp_path / "data", word="<thing>")
    with pytest.raises(LadingError, match="'zebra' is 5 tokens for text_encoder: begin with a word of one"):
        train_model("shapes", data, tmp_path / "out", settings)


def test_steps_are_told_as_they_are_made(pictures: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Sees(Watcher):
        def step(self, progress: Any) -> None:
            seen.append(progress)

    settings = Settings(steps=3, batch_size=2, warmup=2, schedule="constant", learning_rate=1e-3)
    train_model("shapes", pictures, tmp_path, settings, watcher=Sees())
    assert [each.step for each in seen] == [1, 2, 3]
    assert [each.learning_rate for each in seen] == pytest.approx([0, 5e-4, 1e-3])
    assert all(each.loss > 0 and each.gradient_norm > 0 and each.examples == 2 for each in seen)


def test_tensorboard_reads_the_events_of_a_run(pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lading.training.logs import TensorBoard

    train_model("shapes", pictures, tmp_path, Settings(steps=2), watcher=TensorBoard(tmp_path / "logs"))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    read = [event.value for event in events.Scalars("train/loss")]
    assert read == pytest.approx(losses(tmp_path))
