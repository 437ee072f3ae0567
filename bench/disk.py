"""The disk under the checkpoints: what is in the page cache, how fast it is, and how to hold it to a rate."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

RAW_THREADS = 4
RAW_BYTES = 8 << 20
_CGROUPS = Path("/sys/fs/cgroup")


def drop_from_cache(files: Iterable[Path]) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bring_into_cache(files: Iterable[Path]) -> None:
    """Read files through the page cache."""
    buffer = bytearray(RAW_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def raw_reader(files: Sequence[Path]) -> Callable[[], None]:
    """Return what reads files past the page cache, by several threads into memory used again and again.

    This is as fast as files leave the disk: nothing is kept. It can be called once.
    """
    sizes = {os.open(file, os.O_RDONLY | os.O_DIRECT): file.stat().st_size for file in files}
    pieces = deque((descriptor, offset) for descriptor, size in sizes.items() for offset in range(0, size, RAW_BYTES))
    buffers = [mmap.mmap(-1, RAW_BYTES) for _ in range(RAW_THREADS)]
    for buffer in buffers:
        buffer.write(bytes(RAW_BYTES))  # the kernel hands out its pages now

    def read_pieces(buffer: mmap.mmap) -> int:
        done = 0
        with suppress(IndexError):
            while True:
                descriptor, offset = pieces.popleft()
                done += os.preadv(descriptor, [buffer], offset)
        return done

    def read() -> None:
        with ThreadPoolExecutor(RAW_THREADS) as pool:
            done = sum(pool.map(read_pieces, buffers))
        if done != sum(sizes.values()):
            raise OSError(f"{done} bytes read of {sum(sizes.values())}")

    return read


@contextmanager
def throttled(folder: Path, rate: int) -> Iterator[None]:
    """Hold this process, and those it starts, to a rate of reads from the disk that holds a folder.

    Args:
        rate: in bytes a second.

    Raises:
        OSError: there is no block device under the folder, or this process may not throttle it.
    """
    device = _block_device(folder)
    if (_CGROUPS / "blkio").is_dir():
        root, own = _CGROUPS / "blkio", _own_group("blkio")
        file, limit = "blkio.throttle.read_bps_device", f"{device} {rate}"
    else:
        root, own = _CGROUPS, _own_group("")
        file, limit = "io.max", f"{device} rbps={rate}"
        (root / "cgroup.subtree_control").write_text("+io")
    group = root / f"lading-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / own / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


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
