"""Whole processes: hashing 40 GB of shards, and from the shell to a picture on disk."""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.runs import interleave, machine, medians, python

TIMED = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
wall = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}))
"""
SHORTEST = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
pipeline("a red circle on a white background", generator=generator).images[0].save(sys.argv[2])
"""
LAYOUTS = Path(__file__).parent.parent / "tests" / "data" / "layouts.json.gz"


def write_shards(folder: Path, count: int = 9) -> list[Path]:
    """Write Qwen-Image's transformer, 40 GB, as shards whose data is a hole."""
    from tests.conftest import write_sparse

    layouts: dict[str, Any] = json.loads(gzip.decompress(LAYOUTS.read_bytes()))
    tensors = layouts["Qwen-Image transformer"]["tensors"]
    names = list(tensors)
    return [
        write_sparse(folder / f"part-{number}.safetensors", {name: tensors[name] for name in names[number::count]})
        for number in range(count)
    ]


def main(rounds: int = 7) -> None:
    """Measure and print the table."""
    from lading import shipped_model

    lading = [sys.executable, "-m", "lading"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = [str(shard) for shard in write_shards(folder)]
        prompt = ["generate", "a red circle on a white background", "--out", str(folder / "ours.png")]
        commands = {
            "lading hash, 40 GB in 9 shards": [*lading, "hash", *shards],
            "lading generate, shipped model": [*lading, *prompt],
            "shortest diffusers script": python(SHORTEST, str(shipped_model()), str(folder / "theirs.png")),
        }
        results = interleave({name: python(TIMED, *command) for name, command in commands.items()}, rounds)
    print(f"\nWhole processes; median of {rounds}; {machine()}\n")
    print("| command | wall s | CPU s | peak memory MB |\n|---|---|---|---|")
    for name in commands:
        wall, cpu, peak = (medians(results, figure)[name] for figure in ("wall", "cpu", "peak"))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |")


if __name__ == "__main__":
    main()
