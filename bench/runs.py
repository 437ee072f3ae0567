"""Programs measured side by side, each run in a process of its own, all interleaved."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"
"""On the disk that holds the repository, unlike the system's temporary folder, which may lie in memory."""

TIMED = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
failed = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
wall = time.perf_counter() - start
if failed:
    sys.exit(1)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}))
"""


@dataclass
class Series:
    """What one program printed, run by run.

    Attributes:
        failure: why it was not run to the end of the rounds.
    """

    runs: list[dict[str, float]] = field(default_factory=list)
    failure: str | None = None

    def median(self, figure: str) -> float:
        """The median of one figure."""
        return median(run[figure] for run in self.runs)

    def ratio(self, baseline: Series, figure: str) -> float:
        """The median of one figure over that of another program in the same round."""
        return median(run[figure] / base[figure] for run, base in zip(self.runs, baseline.runs, strict=True))


def interleave(
    programs: Mapping[str, list[str]], rounds: int, before_each: Callable[[], None] = lambda: None
) -> dict[str, Series]:
    """Run each program once a round, every round beginning with another; read what it prints as JSON on its last line.

    A program that fails is not run again.
    """
    series = {name: Series() for name in programs}
    names = list(programs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if series[name].failure is not None:
                continue
            before_each()
            run = subprocess.run(programs[name], capture_output=True, text=True, cwd=ROOT, env=environment())
            if run.returncode == 0:
                series[name].runs.append(json.loads(run.stdout.splitlines()[-1]))
            else:
                killed = run.returncode == -signal.SIGKILL
                reason = "killed, for want of memory" if killed else (run.stderr.splitlines() or ["no message"])[-1]
                series[name] = Series(failure=reason)
    return series


def environment() -> dict[str, str]:
    """That programs run in, peers' as well: with this repository, and compiled as what is installed is."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def print_failures(results: Iterable[Mapping[str, Series]]) -> None:
    """Print why programs have no figures."""
    failures = {name: series.failure for each in results for name, series in each.items() if series.failure}
    for name, failure in failures.items():
        print(f"\n{name}: {failure}")


def rounds_parser(name: str, rounds: int) -> ArgumentParser:
    """The parser of a measurement's command line, with the option that all of them have."""
    parser = ArgumentParser(prog=f"python -m bench {name}")
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each program (default: %(default)s)")
    return parser


def machine() -> str:
    """One line on where and with what the figures were measured."""
    names = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, {libraries}"


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a program's text."""
    return [sys.executable, "-c", program, *arguments]


def timed(command: list[str]) -> list[str]:
    """The command that runs another one and prints its wall and CPU seconds and the peak of its memory in bytes."""
    return python(TIMED, *command)
