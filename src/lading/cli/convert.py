"""`lading convert`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lading.checkpoint import convert_checkpoint, open_checkpoint
from lading.loading.progress import loading_bar
from lading.sizes import format_size


@click.command("convert")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--dtype", help="Such as bfloat16: floating-point tensors are cast to it.")
@click.option("--max-shard-size", help="Such as 5GB: TARGET becomes a folder of shards with an index.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(source: str, target: Path, dtype: str | None, max_shard_size: str | None, as_json: bool) -> None:
    """Write SOURCE, a checkpoint of any kind, as safetensors to TARGET.

    It takes little memory however large the checkpoint is, is read again and compared, and appears whole or not at all.
    """
    checkpoint = open_checkpoint(source)
    with loading_bar(f"converting {Path(source).name}", 2 * checkpoint.nbytes) as on_bytes:
        files = convert_checkpoint(checkpoint, target, dtype, max_shard_size, on_bytes)
    written = sum(file.stat().st_size for file in files)
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in files], "nbytes": written}))
    else:
        click.echo(
            f"{target}  {len(files)} files, {format_size(written)}"
            if len(files) > 1
            else f"{target}  {format_size(written)}"
        )
