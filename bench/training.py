"""LoRA on SD1.5's UNet: lading's steps beside those of diffusers' training script, resident and in less memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.loading import COMPARISONS
from bench.runs import BUILD, interleave, machine, print_failures, rounds_parser

THEIRS, OURS = "diffusers' loop", "lading"


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = rounds_parser("training", rounds=3)
    parser.add_argument("--steps", type=int, default=4, help="of each run, the first counted apart (default: 4)")
    parser.add_argument("--share", type=int, default=60, help="of lading's resident peak, in percent (default: 60)")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps: the first step is counted apart, so there have to be two at least")
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name) / "checkpoint"
        COMPARISONS["unet32"].write(folder)
        module = [sys.executable, "-m", "bench.trainers"]
        given = [str(folder), str(options.steps)]
        resident = interleave({OURS: [*module, "lading", *given]}, 1)[OURS]
        if resident.failure is not None:
            sys.exit(f"{OURS}: {resident.failure}")
        limit = int(resident.median("peak") * options.share / 100)
        limited = f"{OURS}, limit of {limit / 1e9:.2f} GB"
        programs = {
            THEIRS: [*module, "diffusers", *given],
            OURS: [*module, "lading", *given],
            limited: [*module, "lading", *given, str(limit)],
        }
        results = interleave(programs, options.rounds)
    print(f"\nLoRA of rank 4 on SD1.5's UNet, float32, 512 x 512, batch 1; median of {options.rounds}; {machine()}\n")
    print("| way | s/step | x diffusers' loop | first step s | peak GB |\n|---|---|---|---|---|")
    for way, series in results.items():
        if series.failure is None and results[THEIRS].failure is None:
            ratio = series.ratio(results[THEIRS], "step")
            figures = (series.median("step"), ratio, series.median("first"), series.median("peak") / 1e9)
            print(f"| {way} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    print_failures([results])
