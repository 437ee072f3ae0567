"""Control groups, version 1 and 2: reads held to a rate, memory held to a limit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

THROTTLE = 800_000_000
"""Bytes a second that a throttled disk is held to: less than any disk under a benchmark gives."""
DISKS = {"throttled": f"disk held to {THROTTLE / 1e6:.0f} MB/s", "bare": "bare disk"}
_ROOT = Path("/sys/fs/cgroup")


def each_disk(names: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield the title of each disk of `DISKS` while this process reads from it; what cannot be had is one line.

    Args:
        folder: lies on the disk that is throttled.
    """
    for name in names:
        with ExitStack() as stack:
            if name == "throttled":
                try:
                    stack.enter_context(throttled(folder, THROTTLE))
                except OSError as error:
                    print(f"The disk cannot be throttled here: {error}\n")
                    continue
            yield DISKS[name]


@contextmanager
def throttled(folder: Path, rate: int) -> Iterator[None]:
    """Hold this process, and those it starts, to a rate of reads from the disk that holds a folder.

    Args:
        rate: in bytes a second.

    Raises:
        OSError: there is no block device under the folder, or this process may not throttle it.
    """
    device = _block_device(folder)
    if (_ROOT / "blkio").is_dir():
        root, own = _ROOT / "blkio", _own_group("blkio")
        file, limit = "blkio.throttle.read_bps_device", f"{device} {rate}"
    else:
        root, own = _ROOT, _own_group("")
        file, limit = "io.max", f"{device} rbps={rate}"
        (root / "cgroup.subtree_control").write_text("+io")
    group = root / f"lading-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(limit)
        enter(group)
        yield
    finally:
        enter(root / own)
        group.rmdir()


@contextmanager
def memory_limited(nbytes: int) -> Iterator[Path]:
    """Make a group for processes to `enter`: what they take from then on, page cache included, stays below a limit.

    Raises:
        OSError: this process may make no groups.
    """
    if (_ROOT / "memory").is_dir():
        root, settings = _ROOT / "memory", [("memory.limit_in_bytes", str(nbytes)), ("memory.swappiness", "0")]
    else:
        root, settings = _ROOT, [("memory.max", str(nbytes)), ("memory.swap.max", "0")]
        (root / "cgroup.subtree_control").write_text("+memory +io")
        rates = root / _own_group("") / "io.max"  # in version 2 whoever enters a group leaves the one of its rate
        settings += [("io.max", line) for line in rates.read_text().splitlines()] if rates.is_file() else []
    group = root / f"lading-bench-{os.getpid()}-{nbytes}"
    group.mkdir()
    try:
        for file, text in settings:
            if (group / file).is_file():  # kernels without swap have no limit for it
                (group / file).write_text(text)
        yield group
    finally:
        group.rmdir()


def enter(group: Path) -> None:
    """Move this process into a group; the memory that it has stays where it was counted."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _block_device(folder: Path) -> str:
    """The major and minor number of the whole disk that holds a folder: partitions cannot be throttled."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    if (device / "partition").is_file():
        device = device.parent
    return (device / "dev").read_text().strip()


def _own_group(controller: str) -> str:
    """This process's group below the root of a controller's hierarchy; "" is version 2's only one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    raise FileNotFoundError(f"no control group for {controller or 'io'}")
