"""Programs measured side by side, each run in a process of its own, all interleaved."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median
from typing import Any


def interleave(
    programs: Mapping[str, list[str]], rounds: int, before_each: Callable[[], None] = lambda: None
) -> dict[str, list[dict[str, Any]]]:
    """Run each program once a round, in turns; return what each printed as JSON on its last line."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, command in programs.items():
            before_each()
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
    return results


def medians(results: Mapping[str, list[dict[str, Any]]], figure: str) -> dict[str, float]:
    """The median of one figure for each program."""
    return {name: median(run[figure] for run in runs) for name, runs in results.items()}


def machine() -> str:
    """One line on where and with what the figures were measured."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "safetensors"))
    return f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, {libraries}"


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a program's text."""
    return [sys.executable, "-c", program, *arguments]
