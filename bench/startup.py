"""From the shell to a picture on disk: `lading generate` beside the shortest script for diffusers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.checkpoints import write_pipeline
from bench.disk import bring_into_cache, drop_from_cache
from bench.runs import BUILD, interleave, machine, print_failures, python, rounds_parser, timed
from lading import shipped_model

PROMPT = "a red circle on a white background"
SHIPPED = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
pipeline(sys.argv[3], generator=generator).images[0].save(sys.argv[2])
"""
LARGE = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float16)
generator = torch.Generator().manual_seed(0)
picture = pipeline(sys.argv[3], height=64, width=64, num_inference_steps=1, generator=generator).images[0]
picture.save(sys.argv[2])
"""
SMALL_PICTURE = ("--dtype", "float16", "--height", "64", "--width", "64", "--steps", "1")


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    rounds = rounds_parser("startup", rounds=7).parse_args(arguments).rounds
    BUILD.mkdir(exist_ok=True)
    print(f"\nProcess start to picture on disk; median of {rounds}; {machine()}\n", flush=True)
    print("| model | program | cold s | warm s | warm, CPU s | peak memory MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name)
        write_pipeline(folder)
        compare("shapes, as it ships", shipped_model(), SHIPPED, (), rounds)
        compare("as large as SD1.5, float16, 1 step of 64x64 pixels", folder, LARGE, SMALL_PICTURE, rounds)


def compare(title: str, model: Path, script: str, options: Sequence[str], rounds: int) -> None:
    """Measure one model with its weights on disk and in the page cache, and print its rows."""
    files = sorted(model.rglob("*.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.png")
        ours = [sys.executable, "-m", "lading", "generate", PROMPT, "--model", str(model), "--device", "cpu", *options]
        programs = {
            "lading generate": timed([*ours, "--out", picture]),
            "shortest diffusers script": timed(python(script, str(model), picture, PROMPT)),
        }
        cold = interleave(programs, rounds, lambda: drop_from_cache(files))
        warm = interleave(programs, rounds, lambda: bring_into_cache(files))
    for name in programs:
        if cold[name].failure is None and warm[name].failure is None:
            seconds, cached, cpu = cold[name].median("wall"), warm[name].median("wall"), warm[name].median("cpu")
            peak = max(series[name].median("peak") for series in (cold, warm)) / 1e6
            print(f"| {title} | {name} | {seconds:.2f} | {cached:.2f} | {cpu:.2f} | {peak:.0f} |")
    print_failures([cold, warm])
