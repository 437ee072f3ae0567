"""`lading inspect`."""

from __future__ import annotations

import json

import click

from lading.checkpoint import open_checkpoint
from lading.report import checkpoint_json, checkpoint_text


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def command(paths: tuple[str, ...], as_json: bool, tensors: bool) -> None:
    """Show what PATHS, one checkpoint, hold, read from their headers alone.

    A path that is not there may be a model on the Hugging Face Hub, org/name, or a folder of it, org/name/unet: its
    headers are read there.
    """
    from lading.hub import remote_checkpoints

    remote = remote_checkpoints(paths[0]) if len(paths) == 1 else None
    found = remote or {"": open_checkpoint(paths[0] if len(paths) == 1 else list(paths))}
    if len(found) == 1:
        (checkpoint,) = found.values()
        click.echo(checkpoint_json(checkpoint) if as_json else checkpoint_text(checkpoint, tensors))
    elif as_json:
        click.echo(json.dumps({name: json.loads(checkpoint_json(held)) for name, held in found.items()}))
    else:
        click.echo("\n\n".join(f"{name}\n{checkpoint_text(held, tensors)}" for name, held in found.items()))
