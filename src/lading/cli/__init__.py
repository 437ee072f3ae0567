"""The command line: one file for each command, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from lading import __version__
from lading.errors import LadingError

_COMMANDS = {
    "convert": "write a checkpoint anew as safetensors",
    "explain": "tell how a model is loaded, and what becomes of a prompt in it",
    "fetch": "bring a model from a hub, or what is missing of it",
    "generate": "draw a picture from a prompt",
    "hash": "print the md5 that names a checkpoint's set of tensors",
    "inspect": "show what a checkpoint holds",
    "plan": "say what a run needs and how long it takes",
    "train": "fine-tune a model on pictures with captions",
}


class _LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is asked for, so that `lading hash` imports no torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lading.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lading")
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
def lading(debug: bool) -> None:
    """Load diffusion models and run them in the memory there is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for an error, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        lading.main(arguments, prog_name="lading", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("lading: interrupted", err=True)
        return 130
    except (LadingError, OSError) as error:
        if "--debug" in arguments:
            raise
        from lading.report import printable

        click.echo(f"lading: {printable(str(error))}", err=True)
        return 1
    return 0
