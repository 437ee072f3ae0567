"""`lading plan`."""

from __future__ import annotations

import json
from typing import Any

import click

from lading.cli.progress import Steps


@click.command("plan")
@click.argument("model", required=False)
@click.option("--memory-limit", help="Such as 8GB, for weights and activations; what does not fit is streamed.")
@click.option("--host-memory-limit", help="The same for the host's memory.")
@click.option("--height", type=click.IntRange(min=1), help="In pixels, with --width; the model's own by default.")
@click.option("--width", type=click.IntRange(min=1), help="In pixels, with --height; the model's own by default.")
@click.option("--num-frames", type=click.IntRange(min=1), help="Of a film, for models that make films.")
@click.option("--batch-size", type=click.IntRange(min=1), help="How many at once; 1 by default.")
@click.option("--steps", type=click.IntRange(min=1), help="Of denoising.")
@click.option("--guidance-scale", type=float, help="How closely to follow the prompt; the pipeline's own by default.")
@click.option("--negative-prompt", help="What the picture should not show: some pipelines take longer with one.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), help="Of the prompt; the most it may have by default.")
@click.option("--dtype", help="Such as bfloat16; for a folder by default what generate chooses, else bfloat16.")
@click.option("--device", help="Such as cpu or cuda; it need not be there. By default what generate chooses.")
@click.option("--read-rate", help="Of the disk, such as 7GB/s.")
@click.option("--copy-rate", help="From the host's memory to a device, such as 25GB/s.")
@click.option("--compute", help="Of the device, such as 100TFLOPS.")
@click.option("--calibrate", is_flag=True, help="Measure this machine first, in about a minute, and keep the rates.")
@click.option("--train", type=click.Choice(["lora", "full", "textual-inversion"]), help="Plan training, not drawing.")
@click.option("--rank", type=click.IntRange(min=1), help="Of a LoRA; 8 by default.")
@click.option("--gradient-checkpointing", is_flag=True, help="In training: compute activations again, and keep fewer.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--variant", help='Such as fp16, for weights in "model.fp16.safetensors".')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    model: str | None,
    memory_limit: str | None,
    host_memory_limit: str | None,
    height: int | None,
    width: int | None,
    num_frames: int | None,
    batch_size: int | None,
    steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
    prompt_tokens: int | None,
    dtype: str | None,
    device: str | None,
    read_rate: str | None,
    copy_rate: str | None,
    compute: str | None,
    calibrate: bool,
    train: str | None,
    rank: int | None,
    gradient_checkpointing: bool,
    revision: str | None,
    variant: str | None,
    as_json: bool,
) -> None:
    """Say what a run of MODEL needs, before a byte of weights is read.

    MODEL is a folder, a checkpoint file, or the id of a model: those that the catalog knows need no network.
    """
    if model is None and not calibrate:
        raise click.UsageError("name a MODEL, or --calibrate to measure this machine")
    from lading.loading.calibrating import calibrate_for
    from lading.loading.planning import plan

    request: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "batch_size": batch_size or 1,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "prompt_tokens": prompt_tokens,
        "torch_dtype": dtype,
        "device": device,
        "revision": revision,
        "variant": variant,
    }
    limits: dict[str, Any] = {"memory_limit": memory_limit, "host_memory_limit": host_memory_limit}
    if calibrate:
        with Steps("measuring", quiet=as_json) as measuring:
            measured = calibrate_for(model, on_progress=measuring.advance, **limits, **request)
        if model is None:
            click.echo(json.dumps(measured.as_dict()) if as_json else measured)
            return
    assert model is not None
    rates: dict[str, Any] = {"read_rate": read_rate, "copy_rate": copy_rate, "compute": compute}
    lesson: dict[str, Any] = {"train": train, "rank": rank, "gradient_checkpointing": gradient_checkpointing}
    found = plan(model, require_fit=not as_json, **limits, **request, **rates, **lesson)
    click.echo(json.dumps(found.as_dict()) if as_json else found)
    found.require_fit()
