"""What this machine has: memory that is free, and the kinds of its file systems. Linux; plain Python."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

FileSystem: TypeAlias = Literal["memory", "network", "local"]

_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "fuse",
    "9p",
    "virtiofs",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "afs",
    "glusterfs",
    "orangefs",
)
_UNLIMITED = 1 << 60


def available_memory() -> int:
    """Return the bytes that this process may still take: what the machine has free, or its control group allows.

    Page cache counts as free, since the kernel gives it up.
    """
    return max(0, min(_machine_memory(), *(_group_memory(group) for group in _groups()), _UNLIMITED))


def taken_memory() -> int:
    """Return the bytes that this process has taken and the kernel cannot take back: anonymous and shared memory."""
    lines = (line.split() for line in _lines("/proc/self/status") if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(fields[1]) * 1024 for fields in lines)


@lru_cache(maxsize=64)
def file_system_of(device: int) -> FileSystem:
    """Return where the files of a device number (`os.stat_result.st_dev`) lie; "local" for those nobody lists."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _lines("/proc/self/mountinfo"):
        fields, _, described = line.partition(" - ")
        if fields.split()[2] == wanted:
            name = described.split()[0]
            return "memory" if name in _MEMORY else "network" if name.startswith(_NETWORK) else "local"
    return "local"


def _machine_memory() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNLIMITED


def _groups() -> list[Path]:
    """The memory control groups of this process, from its own up to the root."""
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup") if controllers == "" else Path("/sys/fs/cgroup/memory")
            own = root / path.lstrip("/")
            if (own / "memory.stat").is_file():
                return [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return []


def _group_memory(group: Path) -> int:
    """What one group leaves: its limit less what it uses, inactive page cache not counted. Both cgroup versions."""
    limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _UNLIMITED:
        return _UNLIMITED
    statistics = dict(line.split() for line in _lines(group / "memory.stat"))
    cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return limit - used + cache


def _number(file: Path) -> int | None:
    text = next(iter(_lines(file)), "")
    return int(text) if text.strip().isdecimal() else None


def _lines(file: str | Path) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []
