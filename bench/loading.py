"""Checkpoints from disk to CPU tensors, every page touched: lading beside what else loads them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.checkpoints import write_flux, write_pipeline, write_t5, write_unet
from bench.disk import bring_into_cache, drop_from_cache
from bench.groups import DISKS, each_disk
from bench.loaders import RAW, SAFETENSORS, WAYS
from bench.peers import peers_python, peers_versions
from bench.runs import BUILD, Series, interleave, machine, print_failures, rounds_parser
from lading.host import available_memory

WARM = "warm"
PEERS = ("fastsafetensors", "runai-model-streamer")
_TEXT_ENCODER = (RAW, SAFETENSORS, "lading.load_state_dict", "transformers from_pretrained", "lading.load_model")
_PIPELINE = (RAW, "DiffusionPipeline.from_pretrained", "lading.load_components")
_DENOISER = tuple(way for way in WAYS if way not in ("transformers from_pretrained", *_PIPELINE[1:]))
_CAST = (SAFETENSORS, "lading.load_state_dict", "diffusers from_pretrained", "lading.load_model")


@dataclass(frozen=True)
class Comparison:
    """A checkpoint and the ways to load it.

    Attributes:
        write: writes it into a folder.
        dtype: that it is stored in.
        ways: names in `WAYS`, for loads in that dtype.
        casts: names in `WAYS`, for loads that cast to bfloat16.
    """

    title: str
    write: Callable[[Path], None]
    dtype: str
    ways: Sequence[str]
    casts: Sequence[str] = ()

    def loads(self) -> dict[str, tuple[str, str]]:
        """Each load's label -> its way and the dtype it ends in."""
        plain = {way: (way, self.dtype) for way in self.ways}
        return plain | {f"{way}, to bfloat16": (way, "bfloat16") for way in self.casts}


COMPARISONS = {
    "unet": Comparison("SD1.5 UNet, float16", partial(write_unet, dtype=torch.float16), "float16", _DENOISER),
    "unet32": Comparison(
        "SD1.5 UNet, float32, as it is and cast to bfloat16",
        partial(write_unet, dtype=torch.float32),
        "float32",
        (RAW, *_CAST),
        _CAST,
    ),
    "t5": Comparison("T5 v1.1 XL encoder, bfloat16", write_t5, "bfloat16", _TEXT_ENCODER),
    "flux5": Comparison(
        "FLUX.1 denoiser of 4 + 8 layers, bfloat16",
        partial(write_flux, layers=4, single_layers=8, shards=1),
        "bfloat16",
        _DENOISER,
    ),
    "pipeline": Comparison("A pipeline as large as SD1.5, float16", write_pipeline, "float16", _PIPELINE),
    "flux24": Comparison(
        "FLUX.1 denoiser, bfloat16, 3 shards",
        partial(write_flux, layers=19, single_layers=38, shards=3),
        "bfloat16",
        _DENOISER,
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Measure and print one table for each checkpoint."""
    parser = rounds_parser("loading", rounds=5)
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        choices=COMPARISONS,
        default=[name for name in COMPARISONS if name != "flux24"],
        help="what to load; flux24 writes 24 GB (default: all but that one)",
    )
    parser.add_argument("--disk", nargs="+", choices=DISKS, default=list(DISKS), help="for cold loads (default: both)")
    options = parser.parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    peers = peers_python(*PEERS)
    for name in options.checkpoints:
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            COMPARISONS[name].write(Path(folder))
            compare(COMPARISONS[name], Path(folder), peers, options.rounds, options.disk)


def compare(comparison: Comparison, folder: Path, peers: str, rounds: int, disks: Sequence[str]) -> None:
    """Measure the loads of one checkpoint under each condition, and print the table.

    Args:
        folder: holds the checkpoint.
        peers: the interpreter of the peers' environment.
        disks: names in `DISKS`.
    """
    files = sorted(folder.rglob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    print(f"\n{comparison.title}, {nbytes / 1e9:.2f} GB; median of {rounds}; {machine()}\n", flush=True)
    programs = _programs(comparison, folder, nbytes, peers)
    results: dict[str, dict[str, Series]] = {}
    for disk in each_disk(disks, folder):
        results[f"cold, {disk}"] = interleave(programs, rounds, lambda: drop_from_cache(files))
    if 2 * nbytes <= available_memory():
        without_disk = {label: command for label, command in programs.items() if label != RAW}
        results[WARM] = interleave(without_disk, rounds, lambda: bring_into_cache(files))
    print_table(results, list(programs), nbytes)
    if any(command[0] == peers for command in programs.values()):
        print(f"\n{peers_versions(peers, *PEERS)}")


def print_table(results: Mapping[str, Mapping[str, Series]], labels: Sequence[str], nbytes: int) -> None:
    """Print each load's seconds, how they compare in the same round, and the peak of its memory.

    A cold load is compared by its rate with raw reads, a warm one by its seconds with safetensors.
    """
    columns = [f"{title} s | {'x safetensors' if title == WARM else 'of raw rate'}" for title in results]
    print(f"| load | {' | '.join(columns)} | peak memory / result |\n|---|{'---|---|' * len(columns)}---|")
    for label in labels:
        cells = [_cells(title, series, label) for title, series in results.items()]
        print(f"| {label} | {' | '.join(cells)} | {_peak(results.values(), label)} |")
    for title, series in results.items():
        if RAW in series:
            rates = ", ".join(f"{nbytes / run['seconds'] / 1e9:.2f}" for run in series[RAW].runs)
            print(f"\n{title}: raw reads round by round at {rates} GB/s")
    print_failures(results.values())


def _cells(title: str, results: Mapping[str, Series], label: str) -> str:
    series, baseline = results.get(label, Series()), results.get(SAFETENSORS if title == WARM else RAW, Series())
    if not series.runs:
        return "- | -"
    seconds = f"{series.median('seconds'):.2f}"
    if not baseline.runs:
        return f"{seconds} | -"
    ratio = series.ratio(baseline, "seconds") if title == WARM else 1 / series.ratio(baseline, "seconds")
    return f"{seconds} | {ratio:.2f}"


def _peak(results: Iterable[Mapping[str, Series]], label: str) -> str:
    runs = [run for series in results if label in series for run in series[label].runs]
    shares = [run["peak"] / run["result"] for run in runs if run["result"]]
    return f"{max(shares):.2f}" if shares else "-"


def _programs(comparison: Comparison, folder: Path, nbytes: int, peers: str) -> dict[str, list[str]]:
    """The command of each load that is possible here."""
    roomy = nbytes <= available_memory()
    programs = {}
    for label, (name, dtype) in comparison.loads().items():
        way = WAYS[name]
        interpreter = peers if way.peer else sys.executable
        if way.copies and not roomy:
            print(f"{label}: left out, as a copy does not fit into the free memory\n")
        else:
            programs[label] = [interpreter, "-m", "bench.loaders", name, str(folder), dtype]
    return programs
