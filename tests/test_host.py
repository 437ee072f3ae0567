"""What the machine has is told as the kernel tells it, control groups included."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lading.host import available_memory, file_system_of


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= total


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    assert file_system_of(Path("/dev/shm").stat().st_dev) == "memory"
    assert file_system_of(tmp_path.stat().st_dev) in ("local", "memory")
    assert file_system_of(os.makedev(4095, 1)) == "local"


def test_a_control_groups_limit_counts(control_groups: Callable[[int | None], Path]) -> None:
    program = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from lading.host import available_memory; before = available_memory(); taken = b'x' * (64 << 20);"
        "print(before, before - available_memory())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, control_groups(200 << 20)], capture_output=True, text=True, check=True
    )
    before, taken = map(int, run.stdout.split())
    assert before <= 200 << 20
    assert 60 << 20 < taken < 80 << 20
