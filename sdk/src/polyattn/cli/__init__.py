"""The command line: ``polyattn``.

Each command is a function in a module of its own that is imported when the command is run; what is
heavy, it imports in functions. So help, and commands that only look into manifests, stay quick.

Exit codes: 0, all is well; 1, a check failed or the work could not be done; 2, bad usage.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from ._lazy import LazyGroup

app = typer.Typer(
    name="polyattn",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from polyattn import __version__

        typer.echo(f"polyattn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Attention mechanisms for NumPy arrays: look around, run one, compare them on your data."""


def main() -> None:
    """Run the command line on the arguments of this process."""
    for stream in (sys.stdout, sys.stderr):
        # Formulas are Unicode; a terminal that cannot show a sign shall show another, not fail.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="polyattn")
