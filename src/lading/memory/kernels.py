"""Kernels that a machine's speed is measured with: some of every kind, or those that a network itself runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from lading.memory.operations import Operation, is_free, operation_of
from lading.memory.rates import Rates, Speed
from lading.memory.trace import trace

_SECONDS = 0.08
"""That one kernel is measured for, unless it takes longer."""
_FEWEST_RUNS, _MOST_RUNS = 3, 200
_COLD_BYTES = 256 << 20
"""Weights come from memory, not from a cache: kernels take turns with copies of theirs, as many bytes in all."""
_WEIGHT_BYTES = 1 << 20
_MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class _Blank:
    """A tensor without data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of its memory."""
        places = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1
        return places * self.dtype.itemsize if all(self.shape) else 0

    def tensor(self, device: torch.device) -> torch.Tensor:
        """Fill it with what any operator can compute with."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return tensor.uniform_(0, 1) if self.dtype.is_floating_point and self.dtype.itemsize > 1 else tensor.zero_()


@dataclass(frozen=True)
class Kernel:
    """An operator with its arguments, whose tensors have no data."""

    operation: Operation
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Of the tensors that it takes, and as much again for what it gives."""
        return 2 * sum(blank.nbytes for blank in tree_iter((self.args, dict(self.kwargs))) if isinstance(blank, _Blank))

    def speed(self, device: torch.device) -> Speed | None:
        """Run it, and tell how fast it is; None where it cannot run on made-up data."""
        try:
            seconds = self._seconds(device)
        except (RuntimeError, IndexError, TypeError, ValueError):
            return None
        operation = self.operation
        return Speed(
            operation.operator, operation.dtype, operation.sizes, (operation.flops or operation.nbytes) / seconds
        )

    def _seconds(self, device: torch.device) -> float:
        copies = [self._arguments(device)]
        weight = max((t.nbytes for t in tree_iter(copies[0][0][1:]) if isinstance(t, torch.Tensor)), default=0)
        if weight >= _WEIGHT_BYTES and self.operation.flops:
            copies += [self._arguments(device) for _ in range(min(16, _COLD_BYTES // weight))]
        runs: list[float] = []
        start = time.perf_counter()
        with torch.no_grad():
            self.func(*copies[0][0], **copies[0][1])  # the first run makes what later runs use again
            while len(runs) < _FEWEST_RUNS or (time.perf_counter() - start < _SECONDS and len(runs) < _MOST_RUNS):
                args, kwargs = copies[(len(runs) + 1) % len(copies)]
                _finish(device)
                before = time.perf_counter()
                self.func(*args, **kwargs)
                _finish(device)
                runs.append(time.perf_counter() - before)
        return median(runs)

    def _arguments(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def real(leaf: Any) -> Any:
            if isinstance(leaf, _Blank):
                return leaf.tensor(device)
            return device if isinstance(leaf, torch.device) else leaf

        args, kwargs = tree_map(real, (self.args, dict(self.kwargs)))
        return args, kwargs


def general_kernels(dtype: torch.dtype, device: torch.device) -> list[Kernel]:
    """Return kernels of all kinds that networks spend their time in, small and large."""
    found: list[Kernel] = []

    def add(run: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        with FakeTensorMode():
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
            with torch.no_grad(), _Recorder() as recorder:
                run(*tensors)
        found.extend(recorder.kernels.values())

    def grouped(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.group_norm(x, 32)

    for rows in (1, 8, 64, 256, 1024, 4096):
        for inner, columns in ((3072, 3072), (3072, 12288), (12288, 3072), (768, 768)):
            add(lambda x, w: torch.mm(x, w.t()), (rows, inner), (columns, inner))
    for channels_in, channels, side, places in (
        (320, 320, 3, 64),
        (640, 640, 3, 32),
        (1280, 1280, 3, 16),
        (2560, 1280, 3, 8),
        (512, 512, 3, 64),
        (256, 256, 3, 128),
        (128, 128, 3, 256),
        (512, 512, 1, 64),
    ):
        shapes = (1, channels_in, places, places), (channels, channels_in, side, side)
        add(lambda x, w: torch.nn.functional.conv2d(x, w, padding="same"), *shapes)
    for heads, width, tokens, keys in (
        (24, 128, 64, 64),
        (24, 128, 512, 512),
        (24, 128, 2048, 2048),
        (8, 40, 2048, 2048),
        (8, 80, 1024, 1024),
        (8, 40, 4096, 77),
    ):
        asked, known = (1, heads, tokens, width), (1, heads, keys, width)
        add(torch.nn.functional.scaled_dot_product_attention, asked, known, known)
    for rows in (16, 512, 8192):
        plain = (1, rows, 3072)
        for one in (torch.nn.SiLU(), torch.nn.GELU(), torch.nn.GELU("tanh"), torch.tanh, torch.clone, torch.neg):
            add(one, plain)
        for two in (torch.add, torch.mul, torch.div, torch.sub):
            add(two, plain, plain)
        add(lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]), plain)
        add(lambda x: x.softmax(-1), plain)
        add(lambda x: x.pow(2), plain)
        add(lambda x: x.mean(-1, keepdim=True), plain)
        add(lambda x: x.to(torch.float32 if x.dtype != torch.float32 else torch.bfloat16), plain)
        add(lambda x, y: torch.cat([x, y], 1), plain, plain)
        add(grouped, (1, 320, max(rows // 8, 1), 80))
        add(lambda x: torch.nn.functional.interpolate(x, scale_factor=2.0), (1, 320, max(rows // 32, 1), 80))
    return found


def kernels_of(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], entry: str, device: torch.device
) -> list[Kernel]:
    """Return the kernels of a call, each once, those that most of its time may go to first; see `trace`."""
    recorder = _Recorder()
    trace(module, args, kwargs, entry, device, recorder=recorder)
    guess = Rates()
    return sorted(
        recorder.kernels.values(),
        key=lambda kernel: -recorder.counts[kernel.operation] * guess.operation_seconds(kernel.operation),
    )


def measure(
    kernels: Iterable[Kernel], device: torch.device, seconds: float, on_kernel: Callable[[int], None] = lambda _: None
) -> Iterator[Speed]:
    """Run kernels one after another until so many seconds are over, and yield their speeds.

    Args:
        on_kernel: told the number of each, from 1, when it is done.
    """
    start = time.perf_counter()
    for number, kernel in enumerate(kernels, 1):
        if time.perf_counter() - start > seconds:
            return
        speed = kernel.speed(device) if kernel.nbytes <= _MOST_BYTES else None
        if speed is not None:
            yield speed
        on_kernel(number)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types it not
    """Notes each distinct kernel, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch types it not
        self.kernels: dict[Operation, Kernel] = {}
        self.counts: dict[Operation, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not is_free(func):
            operation = operation_of(func, args, kwargs or {}, output)
            self.counts[operation] = self.counts.get(operation, 0) + 1
            if operation not in self.kernels:
                blank_args, blank_kwargs = tree_map(_blank, (args, kwargs or {}))
                self.kernels[operation] = Kernel(operation, func, blank_args, blank_kwargs)
        return output


def _blank(leaf: Any) -> Any:
    return _Blank(tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
