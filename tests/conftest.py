"""What tests share: real files, written the way the world writes them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("lading", deadline=None, derandomize=True)
settings.load_profile("lading")


def header_bytes(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_sparse(file: Path, shapes: dict[str, list[int]], itemsize: int = 2, dtype: str = "BF16") -> Path:
    """Write a safetensors file of these tensors whose data is a hole: any size, no disk."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        nbytes = itemsize
        for size in shape:
            nbytes *= size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    header = header_bytes(entries)
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + offset)
    return file


def run_in_terminal(command: list[str]) -> tuple[int, bytes]:
    """Run a command whose stderr is a terminal; return its exit status and what the terminal was sent."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end has closed
        while chunk := os.read(controller, 4096):
            shown += chunk
    os.close(controller)
    return process.wait(), shown


@pytest.fixture(scope="session")
def layouts() -> dict[str, Any]:
    """54 published checkpoints: label -> hash, and tensors as name -> shape."""
    path = Path(__file__).parent / "data" / "layouts.json.gz"
    content: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return content


@pytest.fixture
def control_groups() -> Iterator[Callable[[int | None], Path]]:
    """Makes memory control groups of this test's own, of either version: each with a limit in bytes, or None."""
    memory = Path("/sys/fs/cgroup/memory")
    version_1 = (memory / "memory.limit_in_bytes").exists()
    made: list[Path] = []

    def make(limit: int | None) -> Path:
        group = (memory if version_1 else Path("/sys/fs/cgroup")) / f"lading-{uuid.uuid4().hex}"
        try:
            group.mkdir()
            made.append(group)
            if limit is not None:
                (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        except OSError:
            pytest.skip("control groups cannot be made here")
        return group

    yield make
    for group in made:
        group.rmdir()
