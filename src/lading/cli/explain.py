"""`lading explain`."""

from __future__ import annotations

import json

import click


@click.command("explain")
@click.argument("model")
@click.option("--height", type=int, help="In pixels, of what is made; what the configs say by default.")
@click.option("--width", type=int, help="In pixels.")
@click.option("--num-frames", type=click.IntRange(min=1), help="Of a film, for models that make films.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    model: str, height: int | None, width: int | None, num_frames: int | None, revision: str | None, as_json: bool
) -> None:
    """Tell how MODEL is loaded and what becomes of a prompt in it, in plain words and with its own numbers.

    MODEL is a folder, a checkpoint file, the shipped model "shapes", or the id of a model: of those that lading knows
    no file is needed, of others the configs and headers are read on the Hugging Face Hub. No weight is read.
    """
    from lading.report.explanation import explain

    explanation = explain(model, height, width, num_frames, revision)
    click.echo(json.dumps(explanation.as_dict()) if as_json else explanation)
