"""One timed run of a denoiser on a GPU that does not hold its weights: `python -m bench.offloaders WAY JOB`.

A job without a limit for the host's memory has its weights there; one with it has a part of them on the disk.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from bench.steps import Job, read_job, run
from bench.streamers import Way, from_pretrained, load_by_map, load_with_diffsynth

COPIES = "copies"
COPY_BYTES = 64 << 20
COPY_BUFFERS = 4


@dataclass(frozen=True)
class DeviceWay(Way):
    """A way to run a denoiser on a GPU.

    Attributes:
        limited: whether it can be told how much of the device's memory to take.
        disk: whether it can leave weights on the disk.
    """

    limited: bool = False
    disk: bool = False


def lading(job: Job) -> torch.nn.Module:
    """Stream what does not fit, with lading."""
    from lading import load_model

    model: torch.nn.Module = load_model(
        FluxTransformer2DModel,
        job.folder,
        device=job.device,
        memory_limit=job.limit,
        host_memory_limit=job.host_limit,
    )
    return model


def resident(job: Job) -> torch.nn.Module:
    """Hold everything on the device: how fast it computes."""
    from lading import load_model

    model: torch.nn.Module = load_model(FluxTransformer2DModel, job.folder, device=job.device)
    return model


def block_offload(job: Job) -> torch.nn.Module:
    """Offload block by block, the next on its way on another stream."""
    return _group_offload(job, "block_level")


def leaf_offload(job: Job) -> torch.nn.Module:
    """Offload layer by layer, the next on its way on another stream."""
    return _group_offload(job, "leaf_level")


def model_offload(job: Job) -> torch.nn.Module:
    """Put the whole model onto the device when it is called, as `enable_model_cpu_offload` does with each component."""
    from accelerate import cpu_offload_with_hook  # type: ignore[import-untyped] # it has no types

    model: torch.nn.Module = cpu_offload_with_hook(from_pretrained(job), job.device)[0]
    return model


def sequential_offload(job: Job) -> torch.nn.Module:
    """Put each layer onto the device when it is called, as `enable_sequential_cpu_offload` does."""
    from accelerate import cpu_offload

    model: torch.nn.Module = from_pretrained(job)
    cpu_offload(model, torch.device(job.device), offload_buffers=len(model._parameters) > 0)
    return model


def accelerate_map(job: Job) -> torch.nn.Module:
    """Keep the first blocks on the device, the next ones on the host, the others on the disk."""
    host = job.host_limit if job.host_limit is not None else 1 << 60
    return load_by_map(job, {0: job.limit, "cpu": host})


def diffsynth(job: Job) -> torch.nn.Module:
    """Promote layers to the device while its limit lasts, and copy the others when they compute."""
    free, total = torch.cuda.mem_get_info()
    vram_limit = (total - free + job.limit) / (1 << 30)  # it counts what everybody on the device takes
    place = "cpu" if job.host_limit is None else "disk"
    model = load_with_diffsynth(job, place, place, job.device, vram_limit)
    for part in model.modules():
        onload = getattr(part, "onload", None)
        if onload is not None:
            onload()  # as its pipelines do before a model computes
    return model


def mmgp(job: Job) -> torch.nn.Module:
    """Stream parts from pinned memory; two budgets are taken at a time, as the next part is on its way."""
    from mmgp import offload  # type: ignore[import-not-found] # in the peers' environment

    if offload.last_offload_obj is not None:
        offload.last_offload_obj.release()  # the tiny denoiser's
    torch.set_default_device("cpu")  # it leaves another
    model: torch.nn.Module = from_pretrained(job)
    budget = job.limit // 2 >> 20
    offload.all(
        {"transformer": model},
        pinnedMemory=True,
        quantizeTransformer=False,
        budgets={"transformer": budget},
        asyncTransfers=True,
    )
    return model


WAYS = {
    "lading": DeviceWay(lading, limited=True, disk=True),
    "resident": DeviceWay(resident),
    "diffusers group offload, blocks, streams": DeviceWay(block_offload, disk=True),
    "diffusers group offload, leaves, streams": DeviceWay(leaf_offload, disk=True),
    "diffusers model CPU offload": DeviceWay(model_offload),
    "diffusers sequential CPU offload": DeviceWay(sequential_offload),
    "accelerate device map, max_memory": DeviceWay(accelerate_map, limited=True, disk=True),
    "DiffSynth": DeviceWay(diffsynth, peer="diffsynth", limited=True, disk=True),
    "mmgp": DeviceWay(mmgp, peer="mmgp", limited=True),
}


def main() -> None:
    """Run once and print the figures of `bench.steps.run`, or those of copies alone."""
    name, text = sys.argv[1:]
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, and no other
    job = read_job(text)
    print(json.dumps(copies(job) if name == COPIES else run(WAYS[name].build, job)))


def copies(job: Job) -> dict[str, float]:
    """Copy as many bytes as the weights have out of pinned memory: the link's own rate."""
    sources = [torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(COPY_BUFFERS)]
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=job.device)
    count = max(1, job.nbytes // COPY_BYTES)
    for measured in (False, True):  # the first time warms up
        torch.cuda.synchronize()
        start = time.perf_counter()
        for number in range(count if measured else COPY_BUFFERS):
            target.copy_(sources[number % COPY_BUFFERS], non_blocking=True)
        torch.cuda.synchronize()
    return {"seconds": (time.perf_counter() - start) * job.nbytes / (count * COPY_BYTES)}


def _group_offload(job: Job, offload_type: str) -> torch.nn.Module:
    from diffusers.hooks import apply_group_offloading

    model: torch.nn.Module = from_pretrained(job)
    apply_group_offloading(
        model,
        onload_device=torch.device(job.device),
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=1,
        use_stream=True,
        record_stream=True,
        non_blocking=True,
        offload_to_disk_path=None if job.host_limit is None else str(job.scratch),
    )
    return model


if __name__ == "__main__":
    main()
