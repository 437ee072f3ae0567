"""`lading inspect`."""

from __future__ import annotations

import click

from lading.catalog.recognition import identify_checkpoint
from lading.checkpoint import open_checkpoint
from lading.report import checkpoint_json, checkpoint_text


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--verify", is_flag=True, help="Build the class, without memory, and compare every name and shape.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def command(paths: tuple[str, ...], as_json: bool, verify: bool, tensors: bool) -> None:
    """Tell what PATHS, one checkpoint, are and what is wrong with them, from their headers alone."""
    checkpoint = open_checkpoint(paths[0] if len(paths) == 1 else list(paths), complete=False)
    identification = identify_checkpoint(checkpoint)
    faults = None
    if verify:
        from lading.catalog.construction import verify_candidates  # torch, which nothing else here needs

        faults = verify_candidates(checkpoint, identification)
    click.echo(
        checkpoint_json(checkpoint, identification, faults)
        if as_json
        else checkpoint_text(checkpoint, identification, faults, tensors)
    )
