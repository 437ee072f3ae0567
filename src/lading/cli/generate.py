"""`lading generate`."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from lading.cli.progress import Steps


@click.command("generate")
@click.argument("prompt")
@click.option("--model", default="shapes", show_default=True, help="A folder, a Hugging Face id, or the shipped model.")
@click.option("--negative-prompt", help="What the picture should not show.")
@click.option("--height", type=int, help="In pixels; the model's own by default.")
@click.option("--width", type=int, help="In pixels; the model's own by default.")
@click.option("--num-frames", type=click.IntRange(min=1), help="Of a film, for models that make films.")
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps; the pipeline's own by default.")
@click.option("--guidance-scale", type=float, help="How closely to follow the prompt; the pipeline's own by default.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same picture.")
@click.option("--device", help="Such as cpu or cuda:1; by default the accelerator that torch finds, else the CPU.")
@click.option("--dtype", help="Such as bfloat16; by default what each class's own from_pretrained chooses.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="A LoRA to draw with; may be repeated.")
@click.option("--memory-limit", help="Such as 8GB, for weights and activations; what does not fit is streamed.")
@click.option("--host-memory-limit", help="The same for the host's memory.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--variant", help='Such as fp16, for weights in "model.fp16.safetensors".')
@click.option("--report", type=click.Path(path_type=Path), help="A page of what happened: tables and charts, in HTML.")
@click.option("--trace", type=click.Path(path_type=Path), help="The same for https://ui.perfetto.dev, in JSON.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("picture.png"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    prompt: str,
    model: str,
    negative_prompt: str | None,
    height: int | None,
    width: int | None,
    num_frames: int | None,
    steps: int | None,
    guidance_scale: float | None,
    seed: int,
    device: str | None,
    dtype: str | None,
    loras: tuple[str, ...],
    memory_limit: str | None,
    host_memory_limit: str | None,
    revision: str | None,
    variant: str | None,
    report: Path | None,
    trace: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Draw PROMPT and save the picture.

    Prints how each component was loaded, the latent's shape by axis, a bar over the steps, and where the picture is.
    """
    from lading.collection import collection_put_off
    from lading.hub import model_folder
    from lading.loading.generation import Request, add_loras, check_output, draw, latent_of, parse_lora, save_frames
    from lading.loading.pipeline import load_pipeline

    request = Request(prompt, seed, negative_prompt, height, width, num_frames, steps, guidance_scale)
    check_output(out)
    adapters = [parse_lora(lora) for lora in loras]
    folder = model_folder(model, None, revision, variant)
    latent = latent_of(folder, request)
    limits = {"memory_limit": memory_limit, "host_memory_limit": host_memory_limit}
    device = device or ("auto" if memory_limit is None and host_memory_limit is None else None)
    options: dict[str, Any] = {"torch_dtype": dtype, "device": device, "variant": variant, **limits}
    recording: AbstractContextManager[Callable[[Any], None]] = nullcontext(lambda _: None)
    if report is not None or trace is not None:
        from lading.report import recorded_to  # with torch: without it the disk works before torch is imported

        recording = recorded_to(report, trace, folder, request, **options)
    with recording as watch:
        start = time.perf_counter()
        with collection_put_off():
            pipeline = load_pipeline(folder, **options)
            added = add_loras(pipeline, adapters)
            gc.freeze()  # it all stays as long as the process
        loaded = time.perf_counter()
        if not as_json:
            click.echo(pipeline.lading_components)
            for lora in added:
                click.echo(lora)
            click.echo()
            if latent is not None:
                click.echo(latent)
        watch(pipeline)
        with Steps("drawing", quiet=as_json) as drawing:
            frames = draw(pipeline, request, drawing.advance)
        save_frames(frames, out)
        drawn = time.perf_counter()
    if as_json:
        result = {
            "out": str(out),
            "prompt": prompt,
            "seed": seed,
            "model": str(folder),
            "pipeline": type(pipeline).__name__,
            "components": [record.as_dict() for record in pipeline.lading_components.records],
            "loras": [lora.as_dict() for lora in added],
            "latent": dict(latent.sizes) if latent is not None else None,
            "frames": len(frames),
            "seconds": {"load": round(loaded - start, 3), "draw": round(drawn - loaded, 3)},
        }
        click.echo(json.dumps(result))
    else:
        click.echo(f"{out}  seed {seed}  loaded in {loaded - start:.1f} s, drawn in {drawn - loaded:.1f} s")
