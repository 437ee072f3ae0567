"""Steps of FLUX.1's denoiser: its inputs, the clock around them, and what a run reports."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from diffusers import FluxTransformer2DModel

from bench.checkpoints import write_model
from bench.groups import enter


@dataclass(frozen=True)
class Job:
    """What one run computes, and within what.

    Attributes:
        folder: of the checkpoint.
        scratch: for files that a library writes.
        limit: bytes on the device that computes.
        host_limit: bytes in the host's memory, where another device computes and weights are to come from the disk.
        group: a memory control group to enter before the clock runs.
        steps: calls of the denoiser, at least 2.
        tokens: of the image and of the text.
    """

    folder: Path
    scratch: Path
    limit: int
    host_limit: int | None = None
    group: Path | None = None
    steps: int = 4
    tokens: tuple[int, int] = (64, 16)
    device: str = "cpu"

    @property
    def files(self) -> list[Path]:
        """Of the checkpoint's weights."""
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def source(self) -> Path:
        """The checkpoint's only file, or its index."""
        return next(self.folder.glob("*.index.json"), None) or self.files[0]

    def arguments(self) -> list[str]:
        """What `read_job` reads."""
        fields = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return [json.dumps(fields)]


Build: TypeAlias = Callable[[Job], torch.nn.Module]


def read_job(text: str) -> Job:
    """Read what `Job.arguments` wrote."""
    fields: dict[str, Any] = json.loads(text)
    paths = {name: Path(fields[name]) for name in ("folder", "scratch", "group") if fields[name] is not None}
    return Job(**{**fields, **paths, "tokens": tuple(fields["tokens"])})


def run(build: Build, job: Job) -> dict[str, float]:
    """Load and step once with a tiny denoiser, so that imports are done; then the real one, in the job's group.

    Returns:
        seconds of preparation (until the library returns the model), of the first step from the library's call on, and
        of a step after that, the median; bytes read from the disk in such a step; the peak of memory in bytes, here
        and on a CUDA device, with the pages of mapped files; and the output's sum.
    """
    _warm_up(build, job)
    if job.group is not None:
        enter(job.group)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    cuda = job.device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    model = build(job)
    prepared = time.perf_counter() - start
    inputs = flux_inputs(model, job)
    ends, read, output = [start], [_read_bytes()], torch.empty(0)
    with torch.no_grad():
        for _ in range(job.steps):
            output = model(**inputs, return_dict=False)[0]
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            read.append(_read_bytes())
    found = {
        "prepared": prepared,
        "first": ends[1] - start,
        "step": _median_growth(ends[1:]),
        "read": _median_growth(read[1:]),
        "peak": float(_memory("VmHWM") - before),
        "sum": output.double().sum().item(),
    }
    if cuda:
        found["device_peak"] = float(torch.cuda.max_memory_allocated())
    return found | _planned(model)


def flux_inputs(model: Any, job: Job) -> dict[str, torch.Tensor]:
    """The same noise, text and positions for every run."""
    image, text = job.tokens
    config, generator = model.config, torch.Generator("cpu").manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").bfloat16().to(job.device)

    return {
        "hidden_states": noise(1, image, config.in_channels),
        "encoder_hidden_states": noise(1, text, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], dtype=torch.bfloat16, device=job.device),
        "guidance": torch.tensor([3.5], dtype=torch.bfloat16, device=job.device),
        "img_ids": torch.zeros(image, 3, device=job.device),
        "txt_ids": torch.zeros(text, 3, device=job.device),
    }


def _warm_up(build: Build, job: Job) -> None:
    scratch = job.scratch / "tiny"
    folder = scratch / "checkpoint"
    scratch.mkdir()
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
    write_model(model, folder, torch.bfloat16)
    tiny = replace(job, folder=folder, scratch=scratch / "written", limit=1 << 30, host_limit=None, tokens=(8, 4))
    tiny.scratch.mkdir()
    warm = build(tiny)
    with torch.no_grad():
        warm(**flux_inputs(warm, tiny))
    del warm
    gc.collect()


def _planned(model: torch.nn.Module) -> dict[str, float]:
    """What lading means to stream in a step."""
    from lading import LadingError, manager_of

    try:
        return {"planned": float(manager_of(model).plan.placement.streamed_bytes)}
    except LadingError:  # another way, or everything resident
        return {}


def _median_growth(values: list[float] | list[int]) -> float:
    return float(median(after - before for before, after in pairwise(values)))


def _read_bytes() -> int:
    """Bytes that this process has had read from disks, by calls and by page faults."""
    return figure_of("/proc/self/io", "read_bytes")


def _memory(field: str) -> int:
    return figure_of("/proc/self/status", field) * 1024


def figure_of(file: str, field: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {field}")
