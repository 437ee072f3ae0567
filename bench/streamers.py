"""One timed run of a denoiser whose weights do not fit into the memory: `python -m bench.streamers WAY JOB`.

Every way is given the same job, and works with the settings that its documentation advises for little memory on a
machine without another device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from bench.steps import Build, Job, read_job, run


@dataclass(frozen=True)
class Way:
    """A way to run a denoiser.

    Attributes:
        build: loads it.
        peer: the package of PyPI that it takes beside what lading depends on.
    """

    build: Build
    peer: str | None = None


def lading(job: Job) -> torch.nn.Module:
    """Stream what does not fit, with lading."""
    from lading import load_model

    model: torch.nn.Module = load_model(FluxTransformer2DModel, job.folder, memory_limit=job.limit)
    return model


def resident(job: Job) -> torch.nn.Module:
    """Hold everything: how fast the machine computes."""
    from lading import load_model

    model: torch.nn.Module = load_model(FluxTransformer2DModel, job.folder)
    return model


def mapped(job: Job) -> torch.nn.Module:
    """Map the file, and leave what stays to the kernel."""
    model: torch.nn.Module = from_pretrained(job)
    return model


def accelerate_disk(job: Job) -> torch.nn.Module:
    """Offload everything to the disk."""
    from accelerate import disk_offload  # type: ignore[import-untyped] # it has no types

    model: torch.nn.Module = from_pretrained(job)
    disk_offload(model, str(job.scratch), execution_device=torch.device("cpu"))
    return model


def accelerate_map(job: Job) -> torch.nn.Module:
    """Keep as many of the first blocks as the limit takes, and offload the others to the disk."""
    return load_by_map(job, {"cpu": job.limit})


def group_offload(job: Job) -> torch.nn.Module:
    """Offload block by block to the disk."""
    from diffusers.hooks import apply_group_offloading

    model: torch.nn.Module = from_pretrained(job)
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(job.scratch),
    )
    return model


def diffsynth(job: Job) -> torch.nn.Module:
    """Read each layer from the disk when it computes."""
    return load_with_diffsynth(job, offload="disk", onload="disk", preparing="disk")


def from_pretrained(job: Job) -> Any:
    """Load with diffusers, which maps the files."""
    return FluxTransformer2DModel.from_pretrained(job.folder, dtype=torch.bfloat16).eval()


def load_by_map(job: Job, max_memory: Mapping[int | str, int]) -> torch.nn.Module:
    """Load with accelerate, onto each device as many blocks as its bytes take, and the others onto the disk."""
    from accelerate import infer_auto_device_map, init_empty_weights, load_checkpoint_and_dispatch

    with init_empty_weights():
        model = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(job.folder))
    blocks = model._no_split_modules
    device_map = infer_auto_device_map(
        model, max_memory=dict(max_memory), no_split_module_classes=blocks, dtype=torch.bfloat16
    )
    loaded: torch.nn.Module = load_checkpoint_and_dispatch(
        model, str(job.source), device_map=device_map, offload_folder=str(job.scratch), dtype=torch.bfloat16
    )
    return loaded.eval()


def load_with_diffsynth(
    job: Job, offload: str, onload: str, preparing: str, vram_limit: float | None = None
) -> torch.nn.Module:
    """Load with DiffSynth-Studio's memory management.

    Args:
        offload: the device on which layers lie between phases, or "disk"; likewise `onload` and `preparing`.
        vram_limit: in GiB, of the device's memory that is in use.
    """
    with _placeholder("torchvision"):  # which it imports for pictures alone, see bench.peers
        from diffsynth.core import load_model  # type: ignore[import-not-found] # in the peers' environment
        from diffsynth.core.vram import AutoWrappedLinear, AutoWrappedModule  # type: ignore[import-not-found] # likewise

    places = {"offload": offload, "onload": onload, "preparing": preparing, "computation": job.device}
    config = {
        name: value
        for name, value in FluxTransformer2DModel.load_config(job.folder).items()
        if not name.startswith("_")
    }
    model: torch.nn.Module = load_model(
        FluxTransformer2DModel,
        [str(file) for file in job.files],
        config=config,
        module_map={torch.nn.Linear: AutoWrappedLinear, torch.nn.RMSNorm: AutoWrappedModule},
        vram_config={f"{when}_device": place for when, place in places.items()}
        | {f"{when}_dtype": "disk" if place == "disk" else torch.bfloat16 for when, place in places.items()},
        vram_limit=vram_limit,
    )
    return model


WAYS = {
    "lading": Way(lading),
    "diffusers from_pretrained (mmap)": Way(mapped),
    "accelerate disk_offload": Way(accelerate_disk),
    "accelerate device map, max_memory": Way(accelerate_map),
    "diffusers group offload to disk": Way(group_offload),
    "DiffSynth disk offload": Way(diffsynth, peer="diffsynth"),
    "resident": Way(resident),
}


def main() -> None:
    """Run once, and print the figures of `bench.steps.run`."""
    name, text = sys.argv[1:]
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, and no other
    print(json.dumps(run(WAYS[name].build, read_job(text))))


@contextmanager
def _placeholder(name: str) -> Iterator[None]:
    """Let a module be imported that is not there, for those who do not use it."""
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


if __name__ == "__main__":
    main()
