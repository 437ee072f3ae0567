"""`lading train`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lading.cli.progress import TrainingProgress

Command = TypeVar("Command", bound=Callable[..., Any])

_FOLDERS = [
    click.argument("model"),
    click.option("--data", type=click.Path(path_type=Path), required=True, help="Pictures with their captions."),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="For weights, checkpoints and logs."),
    click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in OUT."),
    click.option("--cache", type=click.Path(path_type=Path), help="For encoded data; several runs may share it."),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option("--variant", help='Such as fp16, for weights in "model.fp16.safetensors".'),
    click.option("--tensorboard", is_flag=True, help="Write events to OUT/logs."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
]
_STEPS = [
    click.option("--steps", type=int, help="Of the optimizer."),
    click.option("--batch-size", type=int, help="Examples to one forward."),
    click.option("--accumulate", type=int, help="Forwards to one step."),
    click.option("--learning-rate", type=float),
    click.option("--schedule", help="Of the learning rate: constant, cosine, linear, constant_with_warmup, ..."),
    click.option("--warmup", type=int, help="Steps in which the learning rate rises."),
    click.option("--optimizer", type=click.Choice(["adamw", "adamw8bit"])),
    click.option("--weight-decay", type=float),
    click.option("--clip", type=float, help="The largest norm of the gradients; 0 for none."),
    click.option("--seed", type=int, help="Same seed, same weights."),
    click.option("--ema", type=float, help="Decay of an average of the weights, such as 0.999."),
    click.option("--checkpoint-every", type=int, help="Steps."),
    click.option("--keep-checkpoints", type=int),
    click.option("--memory-limit", help="Such as 8GB: frozen weights that do not fit are streamed."),
    click.option("--host-memory-limit", help="The same for the host's memory."),
    click.option("--dtype", help="Of frozen weights and computation, such as bfloat16."),
    click.option("--device", help="Such as cpu or cuda:1."),
    click.option(
        "--sharded", is_flag=True, help="Under torchrun: each process holds a part of the denoiser's weights."
    ),
    click.option("--gradient-checkpointing", is_flag=True, default=None, help="Less memory for activations."),
]
_DATA = [
    click.option("--resolution", type=int, help="Side of a square of the pictures' area; the model's own by default."),
    click.option("--buckets/--squares", default=None, help="Keep aspect ratios, about, or cut squares."),
    click.option("--num-frames", type=int, help="Of films."),
    click.option("--flip", is_flag=True, default=None, help="Show each picture mirrored too."),
    click.option("--caption-dropout", type=float, help="Share of captions that are left empty."),
    click.option("--on-bad", type=click.Choice(["fail", "skip"]), help="What a picture that cannot be read does."),
]
_LOSS = [
    click.option("--weighting", type=click.Choice(["none", "min-snr", "sigma-sqrt", "cosmap"])),
    click.option("--snr-gamma", type=float, help="Of min-snr."),
    click.option("--timesteps", type=click.Choice(["uniform", "logit-normal", "mode"]), help="Of flow matching."),
    click.option("--shift", type=float, help="Of flow matching's noise levels; the scheduler's by default."),
    click.option("--guidance", type=float, help="For denoisers that are told it."),
]
_VALIDATION = [
    click.option("--validate", "validation_prompts", multiple=True, metavar="PROMPT", help="Drawn into a grid."),
    click.option("--validate-every", type=int, help="Steps; at the end only by default."),
    click.option("--validation-steps", type=int),
    click.option("--validation-guidance", type=float),
]
_SHARED = [*_FOLDERS, *_STEPS, *_DATA, *_LOSS, *_VALIDATION]


def _with(options: list[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group("train")
def command() -> None:
    """Fine-tune MODEL on a folder of pictures with captions."""


@command.command("lora")
@_with(_SHARED)
@click.option("--rank", type=int, help="Of the adapters.")
@click.option("--alpha", type=float, help="Their strength is alpha / rank; the rank by default.")
@click.option("--target", "target_modules", multiple=True, help="A layer's name or its end; the catalog's by default.")
@click.option("--lora-dropout", type=float)
@click.option("--kohya", is_flag=True, default=None, help="Save in kohya's layout as well.")
def lora(**options: Any) -> None:
    """Train adapters on MODEL's denoiser."""
    _train("lora", **options)


@command.command("full")
@_with(_SHARED)
def full(**options: Any) -> None:
    """Train all of MODEL's denoiser."""
    _train("full", **options)


@command.command("textual-inversion")
@_with(_SHARED)
@click.option("--token", required=True, help='The new word, as captions have it, such as "<my-cat>".')
@click.option("--initial-word", help="Whose meaning the new word begins with.")
@click.option("--vectors", type=int, help="Of the new word.")
def textual_inversion(**options: Any) -> None:
    """Train the meaning of a new word for MODEL's text encoders."""
    _train("textual-inversion", **options)


def _train(
    method: str,
    model: str,
    data: Path,
    out: Path,
    resume: bool,
    cache: Path | None,
    revision: str | None,
    variant: str | None,
    tensorboard: bool,
    sharded: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from lading.training.logs import TensorBoard, Watchers
    from lading.training.replicas import launched
    from lading.training.runs import train_model
    from lading.training.settings import Settings

    given = {name: value for name, value in options.items() if value not in (None, ())}
    settings = Settings.from_json({"method": method, **given})
    with launched(settings.device, sharded) as world, TrainingProgress(quiet=as_json or not world.leads) as progress:
        watcher = Watchers([progress, TensorBoard(out / "logs")]) if tensorboard and world.leads else progress
        outcome = train_model(model, data, out, settings, resume, cache, revision, variant, watcher, world)
    if not world.leads:
        return
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in outcome.files], "steps": outcome.steps}))
    else:
        for file in outcome.files:
            click.echo(f"{file}  {outcome.steps} steps")
