"""`lading fetch`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lading.cli.progress import Transfers
from lading.hub.repository import SOURCES
from lading.sizes import format_size


@click.command("fetch")
@click.argument("model_id")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--source", type=click.Choice(SOURCES), help="The hub; huggingface by default.")
@click.option("--to", type=click.Path(path_type=Path), help="A folder for the files, instead of the shared cache.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--variant", help='Such as fp16, for weights in "model.fp16.safetensors".')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    model_id: str,
    patterns: tuple[str, ...],
    source: str | None,
    to: Path | None,
    revision: str | None,
    variant: str | None,
    as_json: bool,
) -> None:
    """Bring a model from a hub, or what is missing of it.

    PATTERN is a file's name, a glob or a folder with a trailing "/". Without one, what `generate` would use of a
    pipeline comes, and all files of another model. Interrupted, it goes on where it stopped; what arrives is verified.
    """
    from lading.hub.fetch import fetch_model

    with Transfers(quiet=as_json) as transfers:
        fetched = fetch_model(model_id, list(patterns), source, to, revision, variant, transfers)
    if as_json:
        click.echo(json.dumps({"folder": str(fetched.folder), "files": list(fetched.names), "nbytes": fetched.nbytes}))
    else:
        click.echo(f"{fetched.folder}  {len(fetched.names)} files, {format_size(fetched.nbytes)}")
