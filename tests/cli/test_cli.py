"""The command line: what it prints, what it exits with, and what it never does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from lading import hash_model_file, load_pipeline, shipped_model
from lading.cli import main
from tests.conftest import run_in_terminal

COMPONENTS = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
PROMPT = "a red circle on a white background"


def pixels(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """What `lading generate` writes, as a stranger runs it: picture, stdout, stderr."""
    out = tmp_path_factory.mktemp("drawn") / "circle.png"
    run = subprocess.run(
        [sys.executable, "-m", "lading", "generate", PROMPT, "--device", "cpu", "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    return out, run.stdout, run.stderr


def test_generate_prints_the_loading_path_the_latent_and_the_place_of_the_picture(
    drawn: tuple[Path, str, str],
) -> None:
    out, stdout, stderr = drawn
    lines = stdout.splitlines()
    assert lines[0].split()[:3] == ["component", "loader", "class"]
    assert [line.split()[0] for line in lines[1:6]] == COMPONENTS
    assert "latent  batch 1  channels 4  height 8  width 8" in lines
    assert lines[-1].startswith(f"{out}  seed 0  ")
    assert stderr == "", "in a pipe there is no bar, and no library chatters"
    assert pixels(out).shape == (64, 64, 3)


def test_the_picture_is_diffusers_own_bit_for_bit(drawn: tuple[Path, str, str]) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(shipped_model())
    theirs.set_progress_bar_config(disable=True)
    image = theirs(PROMPT, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.array_equal(pixels(drawn[0]), np.asarray(image))


def test_same_seed_same_picture_other_seed_other_picture(tmp_path: Path) -> None:
    def draw(name: str, seed: str) -> Any:
        out = tmp_path / name
        options = ["--seed", seed, "--steps", "3", "--device", "cpu", "--out", str(out)]
        assert main(["generate", PROMPT, *options]) == 0
        return pixels(out)

    assert np.array_equal(draw("a.png", "1"), draw("b.png", "1"))
    assert not np.array_equal(draw("c.png", "1"), draw("d.png", "2"))


def test_options_reach_the_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "picture.webp"
    options = {"steps": 2, "guidance-scale": 2.5, "height": 128, "width": 64, "negative-prompt": "blue", "seed": 5}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["generate", PROMPT, *flags, "--dtype", "float32", "--device", "cpu", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["latent"] == {"batch": 1, "channels": 4, "height": 16, "width": 8}
    assert result["seed"] == 5
    assert [record["name"] for record in result["components"]] == COMPONENTS
    pipeline = load_pipeline("shapes")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        PROMPT,
        negative_prompt="blue",
        num_inference_steps=2,
        guidance_scale=2.5,
        height=128,
        width=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    image.save(tmp_path / "expected.webp")
    assert np.array_equal(pixels(out), pixels(tmp_path / "expected.webp"))


def test_a_terminal_shows_a_bar_over_the_steps(tmp_path: Path) -> None:
    arguments = ["-m", "lading", "generate", PROMPT, "--steps", "4", "--out", str(tmp_path / "a.png")]
    status, shown = run_in_terminal([sys.executable, *arguments])
    assert status == 0
    assert b"drawing" in shown
    assert b"4/4" in shown


def test_a_memory_limit_changes_no_pixel(drawn: tuple[Path, str, str], tmp_path: Path) -> None:
    out = tmp_path / "limited.png"
    assert main(["generate", PROMPT, "--memory-limit", "6MB", "--host-memory-limit", "1GB", "--out", str(out)]) == 0
    assert np.array_equal(pixels(out), pixels(drawn[0]))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # two LoRAs are meant
@pytest.mark.parametrize("limits", [[], ["--memory-limit", "7MB"]])
def test_loras_are_drawn_with_as_diffusers_draws_with_them(tmp_path: Path, limits: list[str]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(shipped_model())
    for number in range(2):
        pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False), "made")
        layers = get_peft_model_state_dict(pipeline.unet, adapter_name="made")
        pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name=f"{number}.safetensors")
        pipeline.unet.delete_adapters("made")
    for number in range(2):
        pipeline.load_lora_weights(tmp_path, weight_name=f"{number}.safetensors", adapter_name=f"a{number}")
    pipeline.set_adapters(["a0", "a1"], [1.0, 0.5])
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    out = tmp_path / "out.png"
    loras = ["--lora", str(tmp_path / "0.safetensors"), "--lora", f"{tmp_path / '1.safetensors'}:0.5"]
    assert main(["generate", PROMPT, "--steps", "3", *loras, *limits, "--out", str(out)]) == 0
    assert np.array_equal(pixels(out), np.asarray(expected))


BAD_REQUESTS: dict[str, tuple[list[str], str]] = {
    "no such model": (["--model", "/nowhere"], "no such folder"),
    "a height that does not divide": (["--height", "65"], "use 64 or 72"),
    "no such folder for the picture": (["--out", "/nowhere/a.png"], "no folder /nowhere"),
    "no such format": (["--out", "a.safetensors"], "use .png"),
    "no such LoRA": (["--lora", "/nowhere.safetensors:2"], "/nowhere.safetensors: there is no such file"),
    "no such size": (["--memory-limit", "much"], "is not a size"),
    "too small a limit": (["--memory-limit", "1kB"], "give it at least"),
    "no such dtype": (["--dtype", "float7"], "no dtype 'float7'"),
    "no such variant": (["--variant", "fp8"], "variant 'fp8'"),
    "frames of a picture": (["--num-frames", "5"], "num_frames 5 is for films"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_one_line_on_stderr_and_status_1(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, reason = BAD_REQUESTS[name]
    assert main(["generate", PROMPT, "--device", "cpu", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lading: ")
    assert reason in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate"]) == 2
    assert main(["hash"]) == 2
    assert main(["fly"]) == 2
    assert main(["generate", PROMPT, "--steps", "0"]) == 2


def test_a_traceback_only_with_debug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lading import CheckpointError

    assert main(["hash", str(tmp_path / "absent")]) == 1
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        main(["--debug", "hash", str(tmp_path / "absent")])


def test_hash_prints_one_md5_for_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": torch.ones(1)}, one)
    save_file({"b": torch.ones(2)}, two)
    assert main(["hash", str(one), str(two)]) == 0
    assert capsys.readouterr().out == f"{hash_model_file([one, two])}\n"


def test_inspect_shows_the_header_facts(capsys: pytest.CaptureFixture[str]) -> None:
    vae = shipped_model() / "vae"
    assert main(["inspect", str(vae), "--tensors"]) == 0
    shown = capsys.readouterr().out
    for text in (hash_model_file(vae), "float16", "diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"):
        assert text in shown


def test_inspect_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    vae = shipped_model() / "vae"
    assert main(["inspect", "--json", str(vae)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"hash", "tensors", "nbytes", "dtypes", "candidates", "problems"} <= facts.keys()
    assert facts["hash"] == hash_model_file(vae)
    assert facts["dtypes"] == {"float16": facts["tensors"]}


def test_inspect_tells_what_a_checkpoint_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"redux_up.weight": torch.ones(24, 4), "redux_up.bias": torch.ones(24), "redux_down.bias": torch.ones(8)}
    save_file({**tensors, "redux_down.weight": torch.ones(8, 24)}, file)
    assert main(["inspect", str(file), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "image_embedder  diffusers.ReduxImageEncoder  family flux, layout diffusers, by structure" in shown
    assert "redux_dim=4 txt_in_features=8" in shown
    assert "verified  diffusers.ReduxImageEncoder: every name and shape agrees" in shown
    save_file({**tensors, "redux_down.weight": torch.ones(8, 25)}, file)
    assert main(["inspect", str(file), "--verify"]) == 0
    assert (
        "mis-shaped: redux_down.weight is (8, 25), diffusers.ReduxImageEncoder makes (8, 24)" in capsys.readouterr().out
    )


def test_inspect_json_holds_candidates_and_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = shipped_model() / "unet"
    assert main(["inspect", "--json", "--verify", str(unet)]) == 0
    facts = json.loads(capsys.readouterr().out)
    (candidate,) = facts["candidates"]
    assert candidate["family"] == "stable_diffusion"
    assert candidate["component"] == "unet"
    assert candidate["model_class"] == "diffusers.UNet2DConditionModel"
    assert candidate["layout"] == "diffusers"
    assert candidate["match"] == "structure"
    assert candidate["faults"] == []
    assert facts["problems"] == []
    save_file({"nobody.knows": torch.ones(3)}, tmp_path / "unknown.safetensors")
    assert main(["inspect", "--json", str(tmp_path / "unknown.safetensors")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["candidates"] == []
    assert "not recognised" in facts["problems"][0]


def test_inspect_names_missing_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"redux_up.weight": torch.ones(24, 4)}, tmp_path / "model-00001-of-00002.safetensors")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "1 shards are missing: model-00002-of-00002.safetensors" in capsys.readouterr().out


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eterm\rover"


def test_nothing_that_a_file_says_is_obeyed_by_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metadata, a config beside the weights, and what errors quote."""
    metadata = {f"key {number}": "x" * 10_000 for number in range(200)}
    file = tmp_path / "model.safetensors"
    save_file({"redux_up.weight": torch.ones(24, 4)}, file, {ESCAPES: ESCAPES, **metadata})
    config = {"_class_name": "ReduxImageEncoder", ESCAPES: 1, "redux_dim": ESCAPES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for options in ([], ["--tensors"], ["--verify"]):
        assert main(["inspect", str(file), *options]) == 0
    shown = capsys.readouterr().out
    assert all(character == "\n" or character.isprintable() for character in shown)
    assert r"\x1b]0;owned\x07" in shown
    assert "and 151 more entries" in shown
    assert len(shown) < 50_000
    index = tmp_path / "other.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": f"{ESCAPES}.safetensors"}}))
    assert main(["inspect", str(index)]) == 1
    said = capsys.readouterr().err
    assert "1 of 1 shards are missing: \\x1b]0;owned" in said
    assert all(character == "\n" or character.isprintable() for character in said)


@pytest.mark.parametrize(
    "arguments", [["convert", "--help"], ["--help"], ["generate", "--help"], ["inspect", str(shipped_model() / "vae")]]
)
def test_help_and_inspect_import_no_torch(arguments: list[str]) -> None:
    program = "import sys; from lading.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL)
