"""What plans predict beside what is then measured: peaks and steps of denoisers of real width, under several limits."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

import lading
from bench.checkpoints import write_model
from bench.runs import BUILD, ROOT, environment, machine
from lading.catalog import component_config, find_repository
from lading.catalog.architecture import Extent
from lading.catalog.construction import model_class
from lading.loading.calibrating import calibrate_for
from lading.loading.examples import example_call
from lading.report.sampling import Sampler, measure_of

_CACHE = "XDG_CACHE_HOME"
_SETTLED = 2
"""Calls before a plan stands: it goes by what they told."""
_KERNEL_SECONDS = 20.0
"""That a model's own kernels are measured for."""


@dataclass(frozen=True)
class Case:
    """A denoiser of a published model.

    Attributes:
        cut: entries of its config that make it less deep.
        sizes: of what is made, in pixels, in the words of `lading.plan`.
    """

    model_id: str
    component: str = "transformer"
    cut: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=lambda: {"height": 256, "width": 256})


CASES = {
    "SD1.5": Case("stable-diffusion-v1-5/stable-diffusion-v1-5", "unet", sizes={"height": 512, "width": 512}),
    "LTX-Video": Case(
        "Lightricks/LTX-Video", cut={"num_layers": 14}, sizes={"height": 256, "width": 256, "num_frames": 9}
    ),
    "SD3.5-large": Case("stabilityai/stable-diffusion-3.5-large", cut={"num_layers": 5}),
    "Qwen-Image": Case("Qwen/Qwen-Image", cut={"num_layers": 3}),
    "Wan2.1-14B": Case(
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        cut={"num_layers": 3},
        sizes={"height": 256, "width": 256, "num_frames": 5},
    ),
    "FLUX.1": Case("black-forest-labs/FLUX.1-dev", cut={"num_layers": 2, "num_single_layers": 4}),
    "Z-Image": Case("Tongyi-MAI/Z-Image", cut={"n_layers": 6}),
}
"""From small to large."""
_COLUMNS = (
    "model",
    "weights GB",
    "limit GB",
    "predicted peak GB",
    "measured",
    "measured / predicted",
    "predicted s/step",
    "measured",
    "measured / predicted",
)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = ArgumentParser(prog="python -m bench plan")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="(default: all)")
    parser.add_argument("--limits", type=int, nargs="+", default=[40, 60, 80], help="in percent of the weights")
    parser.add_argument("--steps", type=int, default=2, help=f"that are measured, after {_SETTLED} others")
    options = parser.parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    print(f"\nDenoisers in bfloat16, random weights; {machine()}\n")
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        os.environ[_CACHE] = str(Path(scratch) / "cache")
        for name in options.models:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                for cells in _rows(CASES[name], Path(folder) / "model", options.limits, options.steps):
                    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _rows(case: Case, folder: Path, percents: Sequence[int], steps: int) -> Iterator[list[str]]:
    write_case(case, folder)
    nbytes = sum(file.stat().st_size for file in (folder / case.component).glob("*.safetensors"))
    request: dict[str, Any] = {**case.sizes, "steps": 10, "guidance_scale": 1.0, "torch_dtype": "bfloat16"}
    calibrate_for(folder, nbytes, seconds=_KERNEL_SECONDS, **request)
    least = lading.plan(folder, nbytes, require_fit=False, **request)
    limits = [max(nbytes * percent // 100, least.minimum_memory) for percent in percents]
    plans = [lading.plan(folder, limit, **request) for limit in limits]
    extent = {"batch": 1, "num_frames": 1, "tokens": least.prompt_tokens, **case.sizes}
    job = {"folder": str(folder), "component": case.component, "limits": limits, "steps": steps, "extent": extent}
    gc.collect()
    command = [sys.executable, "-m", "bench.plan", json.dumps(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()) as run:
        assert run.stdout is not None
        for plan, line in zip(plans, run.stdout, strict=False):
            found = json.loads(line)
            pairs = (plan.peak_bytes / 1e9, found["peak"] / 1e9), (plan.seconds_per_step, found["step"])
            figures = [cell for said, seen in pairs for cell in (f"{said:.2f}", f"{seen:.2f}", f"{seen / said:.2f}")]
            yield [f"{nbytes / 1e9:.2f}", f"{(plan.memory_limit or 0) / 1e9:.2f}", *figures]
    if run.returncode:
        sys.exit(f"{folder}: the run ended with status {run.returncode}")


def write_case(case: Case, folder: Path) -> None:
    """Write a denoiser as a pipeline's folder has it."""
    repository = find_repository(case.model_id)
    component = repository.components[case.component]
    library, _, class_name = component.model_class.rpartition(".")
    network: Any = model_class(component.model_class)
    with torch.device("meta"):
        model = network.from_config({**component_config(component), **case.cut})
    folder.mkdir()
    index = {"_class_name": repository.pipeline_class.rpartition(".")[2], case.component: [library, class_name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_model(model, folder / case.component, torch.bfloat16)


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Load a denoiser under one limit after another, and call it step after step.

    Yields:
        for each limit, the seconds of a step, the median of those after the plan has settled, and the most memory that
        was taken beside what the process took before the first, in bytes.
    """
    taken = measure_of("cpu")
    assert taken is not None
    _warm_up()
    before = taken()
    for limit in job["limits"]:
        sampler = Sampler(taken)
        model = lading.load_component(job["folder"], job["component"], torch_dtype="bfloat16", memory_limit=limit)
        (arguments,) = (kwargs for _, kwargs in example_call(model, Extent(**job["extent"])).values())
        given = tree_map_only(torch.Tensor, _filled, dict(arguments))
        seconds = []
        with torch.no_grad():
            for _ in range(_SETTLED + job["steps"]):
                start = time.perf_counter()
                model(**given)
                seconds.append(time.perf_counter() - start)
        sampler.stop()
        yield {"step": median(seconds[_SETTLED:]), "peak": float(max(sampler.values) - before)}
        lading.manager_of(model).release()
        del model
        gc.collect()


def _filled(blank: torch.Tensor) -> torch.Tensor:
    if blank.is_floating_point():
        return torch.rand(blank.shape, dtype=torch.float32).to(blank.dtype)
    return torch.ones(blank.shape, dtype=blank.dtype)


def _warm_up() -> None:
    """Let the libraries take what they take once: threads, buffers of kernels, imports."""
    layer = torch.nn.Linear(1024, 1024, dtype=torch.bfloat16)
    with torch.no_grad():
        layer(torch.zeros(64, 1024, dtype=torch.bfloat16))
    import diffusers.models  # noqa: F401 # its memory is not the model's

    pipeline = lading.load_pipeline("shapes", memory_limit="8MB")
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red circle", num_inference_steps=1)
    del pipeline, layer
    gc.collect()


if __name__ == "__main__":
    for figures in measure(json.loads(sys.argv[1])):
        print(json.dumps(figures), flush=True)
