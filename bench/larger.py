"""A denoiser larger than the machine: Qwen-Image's, 20 billion parameters and 41 GB, in 4 GB and in 16."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.checkpoints import write_qwen_image
from bench.disk import drop_from_cache
from bench.groups import memory_limited
from bench.loaders import RAW
from bench.runs import BUILD, interleave, machine, print_failures, python, rounds_parser
from bench.streaming import allowed

STEPS = """
import json, sys, time
from itertools import pairwise
from pathlib import Path
from statistics import median
import torch
from diffusers import QwenImageTransformer2DModel
from bench.groups import enter
from bench.steps import figure_of
from lading import load_model, manager_of

folder, group = sys.argv[1], Path(sys.argv[3])
limit, steps, tokens = (int(sys.argv[place]) for place in (2, 4, 5))
torch.nn.Linear(8, 8)(torch.ones(1, 8))
enter(group)
Path("/proc/self/clear_refs").write_text("5")
before = figure_of("/proc/self/status", "VmRSS") * 1024
clock = [time.perf_counter()]
model = load_model(QwenImageTransformer2DModel, folder, memory_limit=limit)
read = []
with torch.no_grad():
    for _ in range(steps):
        read.append(figure_of("/proc/self/io", "read_bytes"))
        model(
            hidden_states=torch.zeros(1, tokens, 64, dtype=torch.bfloat16),
            encoder_hidden_states=torch.zeros(1, 16, 3584, dtype=torch.bfloat16),
            encoder_hidden_states_mask=torch.ones(1, 16, dtype=torch.int64),
            timestep=torch.tensor([0.5], dtype=torch.bfloat16),
            img_shapes=[[(1, 8, tokens // 8)]],
        )
        clock.append(time.perf_counter())
read.append(figure_of("/proc/self/io", "read_bytes"))
seconds = [after - before for before, after in pairwise(clock)]
print(json.dumps({
    "first": seconds[0],
    "step": median(seconds[1:]),
    "read": median(after - before for before, after in pairwise(read[1:])),
    "peak": figure_of("/proc/self/status", "VmHWM") * 1024 - before,
    "waited": median(call.waited_seconds for call in list(manager_of(model).stats().recent)[1:]),
}))
"""


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = rounds_parser("larger", rounds=1)
    parser.add_argument("--limits", type=float, nargs="+", default=[4, 16], help="in GB (default: 4 16)")
    parser.add_argument("--steps", type=int, default=3, help="of each run, the first counted apart (default: 3)")
    parser.add_argument("--tokens", type=int, default=64, help="of the image (default: 64)")
    options = parser.parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name)
        write_qwen_image(folder)
        files = sorted(folder.glob("*.safetensors"))
        nbytes = sum(file.stat().st_size for file in files)
        print(f"\nQwen-Image's denoiser, bfloat16, {nbytes / 1e9:.2f} GB, {options.tokens} image tokens; {machine()}\n")
        print("| limit GB | s/step | read GB/step | of raw rate | waited s/step | first step s | peak GB |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for limit in (int(gigabytes * 1e9) for gigabytes in options.limits):
            with memory_limited(allowed(limit)) as group:
                run = python(STEPS, str(folder), str(limit), str(group), str(options.steps), str(options.tokens))
                programs = {RAW: [sys.executable, "-m", "bench.loaders", RAW, str(folder), "bfloat16"], "lading": run}
                results = interleave(programs, options.rounds, lambda: drop_from_cache(files))
            if results["lading"].failure is None:
                rate = nbytes / results[RAW].median("seconds")
                step, read, waited, first, peak = (
                    results["lading"].median(figure) for figure in ("step", "read", "waited", "first", "peak")
                )
                print(
                    f"| {limit / 1e9:.0f} | {step:.1f} | {read / 1e9:.1f} | {read / step / rate:.2f} | {waited:.1f} "
                    f"| {first:.1f} | {peak / 1e9:.2f} |",
                    flush=True,
                )
            print_failures([results])
