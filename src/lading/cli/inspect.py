"""`lading inspect`."""

from __future__ import annotations

import click

from lading.checkpoint import open_checkpoint
from lading.report import checkpoint_json, checkpoint_text


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def command(paths: tuple[str, ...], as_json: bool, tensors: bool) -> None:
    """Show what PATHS, one checkpoint, hold, read from their headers alone."""
    checkpoint = open_checkpoint(paths[0] if len(paths) == 1 else list(paths))
    click.echo(checkpoint_json(checkpoint) if as_json else checkpoint_text(checkpoint, tensors))
