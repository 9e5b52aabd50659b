"""What the command `polyattn compare` does once its arguments are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyattn.cli._output import print_json, show
from polyattn_core.config import build_config
from polyattn_core.errors import ArgumentError, ConfigError

from ._optional import need
from ._run import compare
from ._selection import parse_options, split_names
from ._terminal import Display
from .data import bundled
from .settings import Settings


def run(
    data: str,
    labels: str | None,
    mechanisms: Sequence[str] | None,
    settings: dict[str, Any],
    *,
    page: bool,
    path: str | None,
    as_json: bool,
) -> None:
    """Compare, print, and write the page; exit code 1 where no mechanism could be measured."""
    settings["exclude"] = split_names(settings["exclude"])
    settings["options"] = parse_options(settings["options"])
    try:
        build_config(Settings, {**settings, "mechanisms": mechanisms or ()}, mechanism="compare")
    except ConfigError as error:
        hint = f"--{error.argument.replace('_', '-')}"
        raise typer.BadParameter(str(error).partition(": ")[2], param_hint=hint) from None
    target = _target(data, path) if page else None
    with Display(Console(stderr=True)) as display:
        found = compare(data, labels, mechanisms or None, progress=display, **settings)
        written = None if target is None else found.save_html(target)
    if as_json:
        print_json({**found.to_dict(), "page": None if written is None else str(written)})
    elif written is None:
        show(found)
    else:
        show(found, Text.assemble("\n", ("The page: ", "dim"), str(written)))
    if found.best is None:
        raise typer.Exit(1)


def _target(data: str, path: str | None) -> Path:
    """Where the page goes; that it can be written is checked before minutes of work."""
    need("altair", "altair", "the page (--no-html does without)")
    need("vl_convert", "vl-convert-python", "the page (--no-html does without)")
    name = re.sub(r"[^\w.-]+", "-", Path(data).stem).strip("-")
    target = Path(path) if path is not None else Path(f"polyattn-compare-{name}.html")
    check_target(target)
    return target


def check_target(path: Path) -> None:
    """A page can be written there."""
    if not path.parent.is_dir() or path.is_dir():
        raise ArgumentError("--html", str(path), "a file in a folder that exists")


def list_bundled(as_json: bool) -> None:
    """Print what data sets come along."""
    fields = ("name", "samples", "coordinates", "target", "description")
    rows = [{field: getattr(entry, field) for field in fields} for entry in bundled()]
    if as_json:
        print_json(rows)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for field in fields:
        table.add_column(field, justify="right" if field in fields[1:3] else "left")
    for row in rows:
        table.add_row(*(f"{x:,}" if isinstance(x, int) else str(x) for x in row.values()))
    show(table)
