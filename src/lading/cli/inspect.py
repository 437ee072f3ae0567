"""`lading inspect`."""

from __future__ import annotations

import json

import click

from lading.catalog.recognition import identify_checkpoint
from lading.checkpoint import Checkpoint, open_checkpoint
from lading.hub.repository import SOURCES
from lading.report import checkpoint_json, checkpoint_text


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--verify", is_flag=True, help="Build the class, without memory, and compare every name and shape.")
@click.option("--source", type=click.Choice(SOURCES), help="The hub of an org/name; huggingface by default.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def command(paths: tuple[str, ...], as_json: bool, verify: bool, source: str | None, tensors: bool) -> None:
    """Tell what PATHS, one checkpoint, are and what is wrong with them, from their headers alone.

    A path that is not there may be a model on a hub, org/name, or a folder of it, org/name/unet: its headers are read
    there.
    """
    from lading.hub import remote_checkpoints

    remote = remote_checkpoints(paths[0], source) if len(paths) == 1 else None
    found = remote or {"": open_checkpoint(paths[0] if len(paths) == 1 else list(paths), complete=False)}
    reports = {name: _report(checkpoint, as_json, verify, tensors) for name, checkpoint in found.items()}
    if len(reports) == 1:
        click.echo(next(iter(reports.values())))
    elif as_json:
        click.echo(json.dumps({name: json.loads(report) for name, report in reports.items()}))
    else:
        click.echo("\n\n".join(f"{name}\n{report}" for name, report in reports.items()))


def _report(checkpoint: Checkpoint, as_json: bool, verify: bool, tensors: bool) -> str:
    identification = identify_checkpoint(checkpoint)
    faults = None
    if verify:
        from lading.catalog.construction import verify_candidates  # torch, which nothing else here needs

        faults = verify_candidates(checkpoint, identification)
    if as_json:
        return checkpoint_json(checkpoint, identification, faults)
    return checkpoint_text(checkpoint, identification, faults, tensors)
