"""``polyattn stubs``: what editors complete the options of builders from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._arguments import Json, family_names
from ._output import note, plain, print_json, show


def stubs(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to; the terminal by default."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAMILY", help="Of this family only; may be repeated.",
            autocompletion=family_names, show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write type stubs of builders, for editors and type checkers.

    polyattn ships those of its own mechanisms; this is for those of other plugins: write
    typings/polyattn/builders.pyi, where mypy (MYPYPATH) and pyright look first.
    """
    from .._stubs import stub

    text = stub(family or ())
    if output is not None:
        output.write_text(text, "utf-8")
    if as_json:
        print_json({"output": None if output is None else str(output), "stub": text})
    elif output is None:
        show(plain(text))
    else:
        note(f"written to {output}")
