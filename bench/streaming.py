"""A denoiser in less memory than its weights take, step after step from the disk: lading beside what else does that."""

from __future__ import annotations

import shutil
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.disk import drop_from_cache
from bench.groups import DISKS, each_disk, memory_limited
from bench.loaders import RAW
from bench.loading import COMPARISONS
from bench.peers import peers_python, peers_versions
from bench.runs import BUILD, interleave, machine, rounds_parser
from bench.steps import Job
from bench.streamers import WAYS
from bench.tables import Bounds, Row, print_steps

OURS, RESIDENT = "lading", "resident"
PEERS = tuple(name for name in WAYS if name not in (OURS, RESIDENT))
SLACK_SHARE, SLACK_BYTES = 0.05, 64 << 20
"""What a group allows over the limit: for Python, and for the kernel's own."""


def add_options(parser: ArgumentParser, peers: Sequence[str]) -> None:
    """Add what the measurements of streaming can be told."""
    parser.add_argument("--steps", type=int, default=4, help="of each run, the first counted apart (default: 4)")
    parser.add_argument(
        "--limits", type=int, nargs="+", default=[40, 60, 80], help="in percent of the weights (default: 40 60 80)"
    )
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="beside lading (default: all)")


def main(arguments: Sequence[str]) -> None:
    """Measure and print one table for each disk."""
    parser = rounds_parser("streaming", rounds=3)
    add_options(parser, PEERS)
    parser.add_argument("--disk", nargs="+", choices=DISKS, default=list(DISKS), help="(default: both)")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps: the first step is counted apart, so there have to be two at least")
    BUILD.mkdir(exist_ok=True)
    packages = [way.peer for name, way in WAYS.items() if name in options.peers and way.peer]
    python = peers_python(*packages) if packages else sys.executable
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        job = Job(Path(name) / "checkpoint", Path(name) / "scratch", limit=0, steps=options.steps)
        COMPARISONS["flux5"].write(job.folder)
        nbytes = job.nbytes
        print(
            f"\n{COMPARISONS['flux5'].title}, {nbytes / 1e9:.2f} GB, {job.tokens[0]} image and {job.tokens[1]} text "
            f"tokens; median of {options.rounds}, {options.steps} steps each; {machine()}\n",
            flush=True,
        )
        limits = [nbytes * percent // 100 for percent in options.limits]
        for disk in each_disk(options.disk, job.folder):
            print(f"\nCold, {disk}\n")
            compare(job, nbytes, limits, [OURS, *options.peers], python, options.rounds)
        if packages:
            print(f"\n{peers_versions(python, *packages)}")


def compare(job: Job, nbytes: int, limits: Sequence[int], ways: Sequence[str], python: str, rounds: int) -> None:
    """Run every way under every limit, on the disk as it is now, and print the table."""
    with ExitStack() as stack:
        programs = {
            RAW: [sys.executable, "-m", "bench.loaders", RAW, str(job.folder), "bfloat16"],
            RESIDENT: [sys.executable, "-m", "bench.streamers", RESIDENT, *job.arguments()],
        }
        for limit in limits:
            group = stack.enter_context(memory_limited(allowed(limit)))
            for way in ways:
                command = [python if WAYS[way].peer else sys.executable, "-m", "bench.streamers", way]
                programs[_label(way, limit)] = [*command, *replace(job, limit=limit, group=group).arguments()]
        results = interleave(programs, rounds, fresh(job))
    bounds = Bounds(
        [run["step"] for run in results[RESIDENT].runs], [nbytes / run["seconds"] for run in results[RAW].runs], nbytes
    )
    rows = [
        Row(way, limit, results[_label(way, limit)], results[_label(OURS, limit)]) for limit in limits for way in ways
    ]
    print_steps(rows, bounds)


def allowed(limit: int) -> int:
    """Bytes that a process may take under a limit after its imports, for a control group."""
    return limit + max(SLACK_BYTES, int(SLACK_SHARE * limit))


def fresh(job: Job) -> Callable[[], None]:
    """Return what runs before each run: earlier runs' files go, and the checkpoint leaves the page cache."""

    def start_again() -> None:
        shutil.rmtree(job.scratch, ignore_errors=True)
        job.scratch.mkdir()
        drop_from_cache(job.files)

    return start_again


def _label(way: str, limit: int) -> str:
    return f"{way}, {limit}"
