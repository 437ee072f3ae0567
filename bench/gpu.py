"""A denoiser on a GPU that does not hold its weights, out of the host's memory and off the disk.

Most peers have no limit, and some treat theirs as a hint. So each peer runs once to see what it takes at its peak, and
is then compared with lading under a limit of just that.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.groups import DISKS, each_disk, memory_limited
from bench.loaders import RAW
from bench.loading import COMPARISONS
from bench.offloaders import COPIES, WAYS
from bench.peers import peers_python, peers_versions
from bench.runs import BUILD, Series, interleave, machine, rounds_parser
from bench.steps import Job
from bench.streaming import OURS, RESIDENT, add_options, allowed, fresh
from bench.tables import Bounds, Row, print_steps

PEERS = tuple(name for name in WAYS if name not in (OURS, RESIDENT))
PEAK = "device_peak"


@dataclass(frozen=True)
class Tier:
    """Where the weights are that the device does not hold.

    Attributes:
        job: with the host's limit and control group, if weights are on the disk.
        limits: in bytes, on the device.
        peers: names in `WAYS`.
        python: the interpreter that has the peers.
        moved: the figure that says how many bytes a step took over the link.
    """

    job: Job
    limits: Sequence[int]
    peers: Sequence[str]
    python: str
    moved: str

    @property
    def link(self) -> list[str]:
        """The command that measures the link's own rate."""
        if self.job.host_limit is None:
            return [sys.executable, "-m", "bench.offloaders", COPIES, *self.job.arguments()]
        return [sys.executable, "-m", "bench.loaders", RAW, str(self.job.folder), "bfloat16"]

    def command(self, way: str, limit: int) -> list[str]:
        """The command of one run."""
        python = self.python if WAYS[way].peer else sys.executable
        return [python, "-m", "bench.offloaders", way, *replace(self.job, limit=limit).arguments()]


def main(arguments: Sequence[str]) -> None:
    """Measure and print a table for the host's memory, and one for each disk."""
    parser = rounds_parser("gpu", rounds=3)
    add_options(parser, PEERS)
    parser.add_argument("--checkpoint", choices=("flux5", "flux24"), default="flux5", help="(default: flux5)")
    parser.add_argument("--tokens", type=int, nargs=2, default=[64, 16], help="of image and text (default: 64 16)")
    parser.add_argument("--tier", nargs="+", choices=("host", *DISKS), default=["host", *DISKS], help="(default: all)")
    parser.add_argument(
        "--host-limit", type=int, default=30, help="in percent of the weights, where they are on a disk (default: 30)"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"\ngpu: needs a CUDA device; torch {torch.__version__} finds none here")
        return
    BUILD.mkdir(exist_ok=True)
    packages = [WAYS[name].peer or "" for name in options.peers if WAYS[name].peer]
    python = peers_python(*packages) if packages else sys.executable
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        job = Job(Path(name) / "checkpoint", Path(name) / "scratch", 0, steps=options.steps, device="cuda")
        job = replace(job, tokens=tuple(options.tokens))
        COMPARISONS[options.checkpoint].write(job.folder)
        print(
            f"\n{COMPARISONS[options.checkpoint].title}, {job.nbytes / 1e9:.2f} GB, {job.tokens[0]} image and "
            f"{job.tokens[1]} text tokens; median of {options.rounds}, {options.steps} steps each; "
            f"{torch.cuda.get_device_name()}; {machine()}\n",
            flush=True,
        )
        limits = [job.nbytes * percent // 100 for percent in options.limits]
        if "host" in options.tier:
            print("\nFrom the host's memory\n")
            compare(Tier(job, limits, options.peers, python, "planned"), options.rounds)
        host_limit = job.nbytes * options.host_limit // 100
        for disk in each_disk([tier for tier in options.tier if tier != "host"], job.folder):
            print(f"\nFrom the disk, cold, with {host_limit / 1e9:.2f} GB of the host's memory; {disk}\n")
            with memory_limited(allowed(host_limit)) as group:
                peers = [peer for peer in options.peers if WAYS[peer].disk]
                held = replace(job, host_limit=host_limit, group=group)
                compare(Tier(held, limits, peers, python, "read"), options.rounds)
        if packages:
            print(f"\n{peers_versions(python, *packages)}")


def compare(tier: Tier, rounds: int) -> None:
    """Run lading under every limit, and each peer beside lading at that peer's peak, and print the table."""
    settings = [(peer, limit) for peer in tier.peers for limit in (tier.limits if WAYS[peer].limited else (0,))]
    probes = {f"{peer}, {limit}": tier.command(peer, limit) for peer, limit in settings}
    start_again = fresh(tier.job)
    probed = interleave(probes, 1, start_again)
    peaks = {label: int(series.runs[0][PEAK]) for label, series in probed.items() if series.runs}
    resident = replace(tier.job, host_limit=None, group=None)
    programs = {
        "link": tier.link,
        RESIDENT: [sys.executable, "-m", "bench.offloaders", RESIDENT, *resident.arguments()],
        **{label: probes[label] for label in peaks},
        **{f"{OURS}, {limit}": tier.command(OURS, limit) for limit in (*tier.limits, *peaks.values())},
    }
    results = {**probed, **interleave(programs, rounds, start_again)}
    bounds = Bounds(
        [run["step"] for run in results[RESIDENT].runs],
        [tier.job.nbytes / run["seconds"] for run in results["link"].runs],
        tier.job.nbytes,
    )
    rows = [_row(tier, OURS, limit, results[f"{OURS}, {limit}"], results) for limit in tier.limits]
    for peer, limit in settings:
        label = f"{peer}, {limit}"
        peak = peaks.get(label, limit)
        rows.append(_row(tier, peer, peak, results[label], results))
        if label in peaks:
            rows.append(_row(tier, f"{OURS} at that peak", peak, results[f"{OURS}, {peak}"], results))
    print_steps(rows, bounds)


def _row(tier: Tier, way: str, limit: int, series: Series, results: Mapping[str, Series]) -> Row:
    ours = results.get(f"{OURS}, {limit}", Series())
    return Row(way, limit, series, ours, tier.job.host_limit or 0, tier.moved, PEAK)
