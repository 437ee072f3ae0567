"""What a plan says of a run is known from configs alone, and comes true."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lading
from lading import ComponentError, LadingError, MemoryLimitError, ShapeError
from lading.cli import main
from lading.loading import calibrating
from lading.loading.blueprint import read_blueprint
from lading.loading.calibrating import calibrate_for
from lading.loading.forecast import Prepared, forecast
from lading.loading.learning import Lesson
from lading.loading.planning import prepare, prepare_training, rates_for
from lading.loading.plans import TrainingPlan
from lading.loading.runs import Wish
from lading.memory import calibration
from lading.memory.prediction import Allowance
from lading.memory.rates import Rates
from lading.training import training_table
from tests.hub.conftest import NO_SOCKET

CPU = torch.device("cpu")
LIMIT = 6_000_000
WAN: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    },
    "transformer/config.json": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 1,
    },
    "vae/config.json": {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}


@pytest.fixture(autouse=True)
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that nobody has calibrated."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """The shipped model, traced."""
    return prepare(read_blueprint("shapes"), Wish(steps=4), None, CPU)


def write_configs(folder: Path, **changes: dict[str, Any]) -> Path:
    """Write the configs of a small Wan, and no weights."""
    for name, config in WAN.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**config, **changes.get(file.parent.name, {})}))
    return folder


def test_a_known_model_is_planned_without_a_network_and_without_a_file_of_it() -> None:
    program = NO_SOCKET + "from lading.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["--memory-limit", "8GB", "--height", "1328", "--width", "1328", "--device", "cpu", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", "Qwen/Qwen-Image", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert list(found) == [
        "fits", "memory_limit", "minimum_memory", "components", "phases", "pixels", "latent", "tokens",
    ]  # fmt: skip
    assert found["fits"] and found["memory_limit"] == 8 * 10**9 > found["minimum_memory"]
    transformer = next(part for part in found["components"] if part["name"] == "transformer")
    assert transformer == {
        "name": "transformer",
        "model_class": "diffusers.QwenImageTransformer2DModel",
        "parameters": 20_430_401_088,
        "nbytes": 40_860_802_176,
        "dtype": "bfloat16",
    }
    assert [phase["component"] for phase in found["phases"]] == ["text_encoder", "transformer", "vae"]
    for phase in found["phases"]:
        assert set(phase) == {
            "component", "resident_bytes", "streamed_bytes", "activation_bytes", "peak_bytes", "seconds",
        }  # fmt: skip
        assert phase["resident_bytes"] + phase["activation_bytes"] <= phase["peak_bytes"] <= 8 * 10**9
        assert phase["seconds"] > 0
    assert found["pixels"] == {"batch": 1, "height": 1328, "width": 1328}
    assert found["latent"] == {"batch": 1, "frames": 1, "channels": 16, "height": 166, "width": 166}
    assert found["tokens"] == 83 * 83


def test_what_is_planned_is_what_the_manager_then_does() -> None:
    plan = lading.plan("shapes", memory_limit=LIMIT, steps=3, guidance_scale=3.0)
    pipeline = lading.load_pipeline("shapes", memory_limit=LIMIT)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red circle on a white background", num_inference_steps=3, guidance_scale=3.0)
    unet = next(phase for phase in plan.phases if phase.component == "unet")
    manager = lading.manager_of(pipeline.unet)
    assert unet.calls == 3
    assert unet.activation_bytes == manager.plan.activation_bytes
    assert unet.peak_bytes <= LIMIT and manager.plan.peak_bytes <= LIMIT
    assert unet.peak_bytes == pytest.approx(manager.plan.peak_bytes, rel=0.05)
    assert manager.stats().recent[1].read_bytes == pytest.approx(unet.streamed_bytes, rel=0.05)


def test_the_least_limit_that_is_named_works_and_one_byte_less_does_not() -> None:
    with pytest.raises(MemoryLimitError, match=r"run in 1.00 kB: its vae needs .* for activations") as few:
        lading.plan("shapes", memory_limit=1000)
    minimum = few.value.minimum
    plan = lading.plan("shapes", memory_limit=minimum, steps=2)
    assert plan.fits and plan.minimum_memory == minimum and plan.peak_bytes <= minimum
    with pytest.raises(MemoryLimitError):
        lading.plan("shapes", memory_limit=minimum - 1)
    pipeline = lading.load_pipeline("shapes", memory_limit=minimum)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle on a white background", num_inference_steps=2).images[0].size == (64, 64)


def test_a_plan_that_does_not_fit_is_one_for_the_least_that_does(prepared: Prepared) -> None:
    plan = forecast(prepared, Allowance(1000), CPU, Rates(), "assumed")
    assert not plan.fits and plan.memory_limit == 1000
    assert plan.peak_bytes <= plan.minimum_memory
    assert "does not fit; the least is" in str(plan)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 40_000_000), st.integers(0, 40_000_000))
def test_more_memory_is_never_slower_and_never_exceeded(prepared: Prepared, one: int, other: int) -> None:
    least = prepared.least().memory
    small, large = (
        forecast(prepared, Allowance(least + more), CPU, Rates(), "assumed") for more in sorted((one, other))
    )
    assert large.seconds_per_step <= small.seconds_per_step * (1 + 1e-9)
    for plan in (small, large):
        assert plan.memory_limit is not None and plan.peak_bytes <= plan.memory_limit


def test_a_plan_reads_as_it_should() -> None:
    plan = lading.plan("shapes", memory_limit=LIMIT, steps=4, read_rate="20MB/s", compute="1TFLOPS")
    text = str(plan)
    assert text.startswith("shapes  diffusers.StableDiffusionPipeline\non cpu in 6.00 MB: fits; the least is ")
    for words in (
        "pixels  batch 1  height 64  width 64",
        "latent  batch 1  channels 4  height 8  width 8  64 tokens, 32 of the prompt",
        "vae.decode",
        "(disk 20.0 MB/s, compute 1.00 TFLOPS; as given)",
    ):
        assert words in text
    assert any("more (a limit of" in line for line in plan.advice)
    assert any("stored in float8" in line for line in plan.advice)
    assert any("batch size of 2" in line for line in plan.advice)
    assert text.endswith("\n".join(plan.advice))


def test_there_is_no_advice_where_nothing_streams_and_one_where_memory_is_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lading.plan("shapes", memory_limit="100MB", steps=2).advice == ()
    monkeypatch.setattr("lading.host.available_memory", lambda: 10_000_000)
    (line,) = lading.plan("shapes", device="cpu", steps=2).advice
    assert "free here: under a memory limit, from" in line


def test_rates_that_are_given_are_what_seconds_are_predicted_with() -> None:
    slow, fast = (lading.plan("shapes", memory_limit=LIMIT, steps=2, read_rate=rate) for rate in ("10MB/s", "1GB/s"))
    unet = next(phase for phase in slow.phases if phase.component == "unet")
    assert unet.call_seconds >= unet.streamed_bytes / 2 / 10e6, "they are stored in float16"
    assert fast.seconds < slow.seconds / 10
    assert slow.rates_source == "given"


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"height": 64}, ShapeError, "height 64 is half a size: give the width too, such as width 64"),
        ({"height": 60, "width": 64}, ShapeError, "height 60 is no multiple of 8: use 56 or 64"),
        ({"num_frames": 9}, ShapeError, "num_frames 9 is for films"),
        ({"read_rate": "fast"}, LadingError, "'fast' is not a rate: write such as"),
        ({"compute": -1}, LadingError, "-1 is not a rate of computing"),
        ({"memory_limit": "much"}, LadingError, "'much' is not a size"),
        ({"device": "cuda", "host_memory_limit": "1GB"}, LadingError, "asks for a memory_limit too"),
        (
            {"device": "cuda", "memory_limit": "1GB", "host_memory_limit": 1000},
            MemoryLimitError,
            "shapes cannot run with 1.00 kB of host memory: its weights pass through",
        ),
    ],
)
def test_what_cannot_be_planned_says_what_would_do(asked: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        lading.plan("shapes", **asked)


def test_configs_alone_are_enough_and_their_rules_hold(tmp_path: Path) -> None:
    folder = write_configs(tmp_path)
    plan = lading.plan(folder, memory_limit="1GB", height=64, width=96, num_frames=9, steps=3)
    assert str(plan.latent) == "latent  batch 1  channels 16  frames 3  height 8  width 12"
    denoising = next(phase for phase in plan.phases if phase.role == "denoise")
    assert denoising.calls == 6, "guidance takes two passes"
    with pytest.raises(ShapeError, match=r"num_frames 10 .*9 or 13"):
        lading.plan(folder, height=64, width=96, num_frames=10)
    with pytest.raises(ShapeError, match="height 72 is no multiple of 16: use 64 or 80"):
        lading.plan(folder, height=72, width=96, num_frames=9)


def test_networks_that_do_not_belong_together_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = write_configs(tmp_path, vae={"z_dim": 48})
    with pytest.raises(ShapeError, match="the denoiser makes 16 channels, and the autoencoder decodes 48"):
        lading.plan(folder, height=64, width=96, num_frames=9)


def test_an_unknown_id_offline_names_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_SKIP_DOWNLOAD", "1")
    with pytest.raises(ComponentError, match=r"Qwen/Qwen-Imag: no such folder or file.*Qwen/Qwen-Image"):
        lading.plan("Qwen/Qwen-Imag")


def test_a_machine_is_measured_once_and_plans_go_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrating, "SECONDS", 0.5)
    monkeypatch.setattr(calibration, "_FILE_BYTES", 64 << 20)
    assert rates_for(CPU)[1] == "assumed"
    told: list[tuple[int, int]] = []
    measured = calibrate_for("shapes", LIMIT, steps=2, on_progress=lambda done, of: told.append((done, of)))
    assert told and all(done <= of for done, of in told)
    assert measured.rates.read > 1e6 and measured.as_dict()["file"].startswith(str(tmp_path))
    rates, source = rates_for(CPU)
    assert source == "measured" and rates == measured.rates and rates.speeds
    assert lading.plan("shapes", memory_limit=LIMIT, steps=2).rates_source == "measured"
    assert rates_for(CPU, read="1GB/s")[0].read == 1e9


def test_a_damaged_file_of_rates_is_as_none(tmp_path: Path) -> None:
    file = calibration.rates_file()
    file.parent.mkdir(parents=True)
    for content in ("", "[]", '{"cpu": 1}', "{"):
        file.write_text(content)
        assert rates_for(CPU)[1] == "assumed"


def test_what_learns_takes_what_the_plan_of_training_says() -> None:
    plan = lading.plan("shapes", memory_limit="12MB", train="lora", rank=16, steps=5)
    step = next(phase for phase in plan.phases if phase.role == "train")
    unet: Any = lading.load_component("shapes", "unet", memory_limit="12MB")
    lading.freeze(unet)
    lading.add_lora(unet, rank=16)
    learns = next(share for share in training_table(unet=unet).shares if share.trained)
    assert plan.training is not None
    assert plan.training == TrainingPlan(
        "lora", 16, learns.parameters, learns.weight_bytes, learns.gradient_bytes, learns.optimizer_bytes
    )
    unet(torch.ones(1, 4, 8, 8), torch.tensor(5), torch.ones(1, 32, 128)).sample.mean().backward()
    manager = lading.manager_of(unet)
    assert step.calls == 5 and step.component == "unet"
    assert abs(step.activation_bytes - manager.plan.activation_bytes) < 64, (
        "gradients come back through the same tensors"
    )
    assert step.peak_bytes <= 12_000_000
    assert step.other_bytes >= learns.weight_bytes + learns.optimizer_bytes
    assert "\nlora of rank 16: " in str(plan) and f"{plan.training}\n" in str(plan)


def test_all_weights_learn_in_float32_and_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "shapes", "--train", "full", "--device", "cpu", "--gradient-checkpointing", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = next(part["nbytes"] for part in found["components"] if part["name"] == "unet")
    assert found["training"]["trainable_bytes"] == found["training"]["gradient_bytes"] == weights
    assert found["training"]["optimizer_bytes"] == 2 * weights
    step = found["phases"][-1]
    assert step["component"] == "unet" and step["streamed_bytes"] == 0
    assert step["peak_bytes"] >= 4 * weights
    with pytest.raises(MemoryLimitError) as few:
        lading.plan("shapes", memory_limit="20MB", train="full")
    assert few.value.minimum >= 4 * weights


def test_the_optimizer_goes_over_all_that_learns_at_each_step() -> None:
    lesson = Lesson("lora")
    prepared = prepare_training(read_blueprint("shapes"), Wish(steps=5), lesson, None, CPU)
    assert prepared.training is not None
    idle = replace(prepared, training=replace(prepared.training, trainable_bytes=0))
    rates = Rates(memory=1e9)
    step, without = (forecast(one, None, CPU, rates, "given").phases[-1].call_seconds for one in (prepared, idle))
    assert step - without > 7 * prepared.training.trainable_bytes / 1e9, "weights, gradients and states, there and back"


def test_too_little_host_memory_beside_a_device_shows_in_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--memory-limit", "1GB", "--host-memory-limit", "1kB"]
    assert main(["plan", "shapes", "--device", "cuda", *limits, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["memory_limit"] > found["minimum_memory"]
    assert found["host_memory_limit"] == 1000 < found["minimum_host_memory"]


def test_activations_that_are_computed_again_are_not_kept() -> None:
    kept, again = (
        next(
            phase for phase in lading.plan("shapes", train="lora", batch_size=4, gradient_checkpointing=way).phases[-1:]
        )
        for way in (False, True)
    )
    assert again.activation_bytes < 0.8 * kept.activation_bytes
    assert again.flops > 1.2 * kept.flops


def test_a_word_is_learnt_through_the_denoiser_and_the_text_encoder() -> None:
    plan = lading.plan("shapes", memory_limit="20MB", train="textual-inversion", steps=3)
    assert [(phase.component, phase.role) for phase in plan.phases] == [
        ("vae", "encode"), ("text_encoder", "train"), ("unet", "train"),
    ]  # fmt: skip
    assert plan.training is not None and plan.training.parameters == 128


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"train": "lora", "rank": 0}, "rank 0 is for LoRA, and 1 or more"),
        ({"train": "full", "rank": 4}, "rank 4 is for LoRA"),
        ({"rank": 4}, 'rank is for training: give train="lora" too'),
        ({"train": "dreambooth"}, "'dreambooth' is no way to train: use one of lora, full, textual-inversion"),
    ],
)
def test_training_that_cannot_be_planned_says_why(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(LadingError, match=says):
        lading.plan("shapes", **asked)
