"""`lading hash`."""

from __future__ import annotations

import click

from lading.checkpoint import hash_model_file


@click.command("hash")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
def command(paths: tuple[str, ...]) -> None:
    """Print one md5 for PATHS: a file, the shards of one checkpoint, a folder or an index.json.

    It names the set of tensors (names and shapes), as DiffSynth-Studio computes it. No data is read.
    """
    click.echo(hash_model_file(paths[0] if len(paths) == 1 else list(paths)))
