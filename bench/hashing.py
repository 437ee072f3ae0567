"""`lading hash` on a checkpoint of 40 GB, as a whole process."""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.runs import ROOT, interleave, machine, print_failures, rounds_parser, timed

LAYOUTS = ROOT / "tests" / "data" / "layouts.json.gz"


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


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    rounds = rounds_parser("hashing", rounds=7).parse_args(arguments).rounds
    with tempfile.TemporaryDirectory() as folder:
        shards = [str(shard) for shard in write_shards(Path(folder))]
        label = f"lading hash, 40 GB in {len(shards)} shards"
        results = interleave({label: timed([sys.executable, "-m", "lading", "hash", *shards])}, rounds)
    print(f"\nWhole process; median of {rounds}; {machine()}\n")
    print("| command | wall s | CPU s | peak memory MB |\n|---|---|---|---|")
    for name, series in results.items():
        if series.failure is None:
            wall, cpu, peak = (series.median(figure) for figure in ("wall", "cpu", "peak"))
            print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |")
    print_failures([results])
