"""What plans predict beside what is then measured: peaks and steps of denoisers of real width, under several limits."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

import lading
from bench.checkpoints import write_model
from bench.disk import drop_from_cache
from bench.runs import BUILD, Series, interleave, machine
from lading.catalog import component_config, find_repository
from lading.catalog.architecture import Extent
from lading.catalog.construction import model_class
from lading.loading.calibrating import calibrate_for
from lading.loading.examples import example_call
from lading.report.sampling import Sampler, measure_of

_CACHE = "XDG_CACHE_HOME"
_SETTLED = 3
"""Calls before a plan stands: the first two are measured, and the third goes by what they told."""


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
    "FLUX.1": Case("black-forest-labs/FLUX.1-dev", cut={"num_layers": 2, "num_single_layers": 4}),
    "Qwen-Image": Case("Qwen/Qwen-Image", cut={"num_layers": 3}),
    "SD1.5": Case("stable-diffusion-v1-5/stable-diffusion-v1-5", "unet", sizes={"height": 512, "width": 512}),
    "SD3.5-large": Case("stabilityai/stable-diffusion-3.5-large", cut={"num_layers": 5}),
    "Wan2.1-14B": Case(
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        cut={"num_layers": 3},
        sizes={"height": 256, "width": 256, "num_frames": 5},
    ),
    "LTX-Video": Case(
        "Lightricks/LTX-Video", cut={"num_layers": 14}, sizes={"height": 256, "width": 256, "num_frames": 9}
    ),
    "Z-Image": Case("Tongyi-MAI/Z-Image", cut={"n_layers": 6}),
}
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
    parser.add_argument("--steps", type=int, default=7, help=f"of each run, the first {_SETTLED} not counted")
    options = parser.parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    print(f"\nDenoisers in bfloat16, random weights, {options.steps} steps each; {machine()}\n")
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            _print_rows(name, Path(folder), options.limits, options.steps)


def _print_rows(name: str, scratch: Path, percents: Sequence[int], steps: int) -> None:
    case, folder = CASES[name], scratch / "model"
    write_case(case, folder)
    files = sorted((folder / case.component).glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    os.environ[_CACHE] = str(scratch / "cache")
    request: dict[str, Any] = {**case.sizes, "steps": 10, "guidance_scale": 1.0, "torch_dtype": "bfloat16"}
    calibrate_for(folder, nbytes, **request)
    plan = lading.plan(folder, nbytes, require_fit=False, **request)
    extent = Extent(1, num_frames=1, tokens=plan.prompt_tokens)
    extent = Extent(**{**vars(extent), **case.sizes})
    gc.collect()
    for percent in percents:
        limit = max(nbytes * percent // 100, plan.minimum_memory)
        predicted = lading.plan(folder, limit, **request)
        job = json.dumps({"folder": str(folder), "component": case.component, "limit": limit, "steps": steps})
        command = [sys.executable, "-m", "bench.plan", job, json.dumps(vars(extent))]
        measured = interleave({name: command}, 1, lambda: drop_from_cache(files))[name]
        cells = [name, f"{nbytes / 1e9:.2f}", f"{limit / 1e9:.2f}", *_figures(predicted, measured)]
        print(f"| {' | '.join(cells)} |", flush=True)
    shutil.rmtree(folder)


def _figures(predicted: lading.loading.Plan, measured: Series) -> list[str]:
    if measured.failure is not None:
        return [f"cannot: {measured.failure}", *["-"] * 5]
    pairs = (
        (predicted.peak_bytes / 1e9, measured.median("peak") / 1e9),
        (predicted.seconds_per_step, measured.median("step")),
    )
    return [cell for said, found in pairs for cell in (f"{said:.2f}", f"{found:.2f}", f"{found / said:.2f}")]


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


def measure(job: Mapping[str, Any], extent: Extent) -> dict[str, float]:
    """Load a denoiser under a limit and call it step after step.

    Returns:
        seconds of a step, the median of those after the plan has settled, and the most memory that was taken beside
        what the process takes without the model, in bytes.
    """
    taken = measure_of("cpu")
    assert taken is not None
    _warm_up()
    before = taken()
    sampler = Sampler(taken)
    model = lading.load_component(
        job["folder"], job["component"], torch_dtype="bfloat16", memory_limit=int(job["limit"])
    )
    (arguments,) = (kwargs for _, kwargs in example_call(model, extent).values())
    given = tree_map_only(torch.Tensor, _filled, dict(arguments))
    seconds = []
    with torch.no_grad():
        for _ in range(job["steps"]):
            start = time.perf_counter()
            model(**given)
            seconds.append(time.perf_counter() - start)
    sampler.stop()
    return {"step": median(seconds[_SETTLED:]), "peak": float(max(sampler.values) - before)}


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
    print(json.dumps(measure(json.loads(sys.argv[1]), Extent(**json.loads(sys.argv[2])))))
