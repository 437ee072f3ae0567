"""How fast this machine reads, copies and computes: measured once, and kept in the user's cache folder."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lading.checkpoint.arena import Arena
from lading.checkpoint.header import FileInventory
from lading.checkpoint.inventory import read_inventory
from lading.checkpoint.reader import FileReader
from lading.checkpoint.reading import Extent, Reading
from lading.devices import find_device
from lading.errors import LadingError
from lading.memory.kernels import Kernel, general_kernels, measure
from lading.memory.planner import BOUNCES
from lading.memory.rates import Rates, Speed

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
"""That kernels are measured in, the one that plans assume first."""

_FILE_BYTES = 1 << 30
_PART = 64 << 20
_FREE_SHARE = 4
"""A file to read takes at most one part in so many of the free disk."""
_ROWS = 1024
_DEFAULTS = {"cpu": Rates(), "cuda": Rates(read=1.5e9, copy=2e10, compute=1e14, memory=1e12)}

OnProgress = Callable[[str, int, int], None]
"""Told what is measured, which part of it is done, and of how many."""


def rates_file() -> Path:
    """Return the file that keeps what was measured: in the user's cache folder, as XDG_CACHE_HOME names it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lading" / "rates.json"


def known_rates(device: torch.device) -> tuple[Rates, bool]:
    """Return the rates of a device, and whether they were measured here or are assumed."""
    entry = _read().get(_device_name(device))
    assumed = _DEFAULTS.get(device.type, _DEFAULTS["cuda"])
    if entry is None:
        return assumed, False
    try:
        speeds = tuple(Speed(operator, dtype, tuple(sizes), rate) for operator, dtype, sizes, rate in entry["speeds"])
        return replace(assumed, **{name: float(entry[name]) for name in _NUMBERS}, speeds=speeds), True
    except (KeyError, TypeError, ValueError):  # written by another version
        return assumed, False


def calibrate(
    device: torch.device,
    files: Iterable[Path] = (),
    kernels: Iterable[Kernel] = (),
    seconds: float = 60.0,
    on_progress: OnProgress = lambda *_: None,
) -> Rates:
    """Measure a device, the bus to it and the disk, and keep the rates for later plans.

    Args:
        files: checkpoints whose disk counts; without any, a file is made in the user's cache folder.
        kernels: that some network runs; with them its own plan is more exact.
        seconds: to spend on kernels.

    Raises:
        LadingError: the device is not there, or nothing can be written.
    """
    on_progress("disk", 0, 1)
    read = _read_rate(list(files))
    on_progress("disk", 1, 1)
    copy = _copy_rate(device)
    known, _ = known_rates(device)
    own = list(kernels)
    anew = not (own and known.speeds)
    speeds = {(speed.operator, speed.dtype, speed.sizes): speed for speed in known.speeds}
    todo = [*own, *(kernel for dtype in DTYPES if anew for kernel in general_kernels(dtype, device))]
    for speed in measure(todo, device, seconds, lambda done: on_progress("kernels", done, len(todo))):
        speeds[speed.operator, speed.dtype, speed.sizes] = speed
    rates = replace(
        known,
        read=read,
        copy=known.copy if copy is None else copy,
        speeds=tuple(speeds.values()),
        overhead=_overhead(device),
    )
    rates = replace(rates, compute=_compute(rates), memory=_memory(rates))
    _write(device, rates)
    return rates


_NUMBERS = ("read", "copy", "compute", "memory", "overhead")


def _read_rate(files: list[Path]) -> float:
    """Bytes per second of direct reads, as weights are streamed."""
    if files:
        return _rate_of([read_inventory(file) for file in files])
    folder = rates_file().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".safetensors") as stream:
            nbytes = min(_FILE_BYTES, free // _FREE_SHARE) // _PART * _PART
            header = json.dumps({"x": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
            header += b" " * (-len(header) % 8)
            stream.write(len(header).to_bytes(8, "little") + header)
            noise = os.urandom(_PART)
            for _ in range(nbytes // _PART):
                stream.write(noise)
            stream.flush()
            os.fsync(stream.fileno())
            return _rate_of([read_inventory(Path(stream.name))])
    except OSError as error:
        raise LadingError(f"{folder}: cannot be written, so that the disk is not measured: {error.strerror}") from None


def _rate_of(inventories: list[FileInventory]) -> float:
    arenas = [Arena(0, _PART) for _ in range(BOUNCES)]
    done, seconds = 0, 0.0
    for inventory in inventories:
        _forget(inventory.file)
        reader = FileReader(inventory, "stream")
        parts = min(inventory.stamp.nbytes, _FILE_BYTES - done) // _PART
        under_way: list[Reading] = []
        start = time.perf_counter()
        for part in range(parts):
            if len(under_way) == len(arenas):
                under_way.pop(0).wait()
            extent = Extent(part * _PART, arenas[part % len(arenas)].view(0, _PART))
            under_way.append(Reading(reader.tasks([extent])))
        for reading in under_way:
            reading.wait()
        seconds += time.perf_counter() - start
        done += parts * _PART
        reader.close()
    if not done:
        raise LadingError(f"{inventories[0].file}: too small to measure a disk with: name a larger checkpoint")
    return done / seconds


def _forget(file: Path) -> None:
    """Have the page cache forget a file."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _copy_rate(device: torch.device) -> float | None:
    found = find_device(device)
    if found is None:
        return None
    source = Arena(0, _FILE_BYTES // 4)
    unpin = found.pin(source.view(0, source.nbytes))
    target = found.empty(source.nbytes)
    rates = []
    try:
        for _ in range(4):
            start = time.perf_counter()
            found.copy(source.tensor(torch.uint8, 0, source.nbytes), target)
            found.event().wait()
            rates.append(source.nbytes / (time.perf_counter() - start))
    finally:
        unpin()
    return median(rates[1:])


def _overhead(device: torch.device) -> float:
    """Seconds that an operator takes with almost nothing to compute."""
    tensor, count = torch.zeros(16, device=device), 2000
    start = time.perf_counter()
    for _ in range(count):
        tensor.add(1)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - start) / count


def _compute(rates: Rates) -> float:
    """What is said of a device in one number: the rate of large products in the dtype that plans assume."""
    products = [speed for speed in rates.speeds if speed.operator == "product"]
    wanted = [speed for speed in products if speed.dtype == "bfloat16" and speed.sizes[0] >= _ROWS]
    return median(speed.rate for speed in wanted or products) if products else rates.compute


def _memory(rates: Rates) -> float:
    adds = [speed for speed in rates.speeds if speed.operator == "add" and speed.sizes[0] >= _PART]
    return median(speed.rate for speed in adds) if adds else rates.memory


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cuda"
    if device.type != "cpu":
        return device.type
    model = "cpu"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model} x {torch.get_num_threads()}"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(rates_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(device: torch.device, rates: Rates) -> None:
    entry = {name: getattr(rates, name) for name in _NUMBERS}
    speeds = [[speed.operator, speed.dtype, speed.sizes, speed.rate] for speed in rates.speeds]
    content = {**_read(), _device_name(device): {**entry, "speeds": speeds}}
    file = rates_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(content))
        part.replace(file)
    except OSError as error:
        raise LadingError(
            f"{file}: cannot be written: {error.strerror}: let XDG_CACHE_HOME name another folder"
        ) from None
