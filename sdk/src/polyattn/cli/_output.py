"""What commands print: tables for people, one JSON document for programs, errors in one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_UNBROKEN = 10_000


def to_people() -> Console:
    """The console on standard output.

    In a pipe lines are not broken, so that grep finds them whole; COLUMNS says otherwise.
    """
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_UNBROKEN if piped else None, highlight=False, emoji=False)


def to_errors() -> Console:
    """The console on standard error, for progress, notes and errors."""
    return Console(stderr=True, highlight=False, emoji=False)


def show(*parts: RenderableType) -> None:
    """Print to people."""
    console = to_people()
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    # Cells are padded to the width of their column, which serves nobody in a pipe or a file.
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    sys.stdout.write(text)


def note(text: str) -> None:
    """Say something beside the result."""
    to_errors().print(Text(text, style="yellow"), soft_wrap=True)


def print_json(document: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=_plain) + "\n")


def print_error(error: BaseException, *, as_json: bool = False) -> None:
    """Print an error in one red line, and the notes that it carries."""
    message = " ".join(str(error).split()) or type(error).__name__
    notes = [" ".join(note.split()) for note in getattr(error, "__notes__", ())]
    console = to_errors()
    # Not broken into lines, so that the text can be searched for and copied.
    console.print(Text(f"Error: {message}", style="bold red"), soft_wrap=True)
    for text in notes:
        console.print(Text(text, style="yellow"), soft_wrap=True)
    if as_json:
        found = {"type": type(error).__name__, "message": message, "notes": notes}
        print_json({"error": found})


def table(*headings: str, unbroken: Iterable[int] = (0,)) -> Table:
    """An empty table; the columns at the positions `unbroken` are not broken into lines."""
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1)
    )
    for position, heading in enumerate(headings):
        made.add_column(
            heading,
            no_wrap=position in set(unbroken),
            style="cyan" if position == 0 else None,
            overflow="fold",
        )
    return made


def fields(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names with their values, one below the other."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, plain(value) if isinstance(value, str) else value)
    return made


def explained(rows: Iterable[tuple[str, tuple[str, ...]]]) -> Table:
    """Names with several lines of text each: below each other for people, beside in a pipe."""
    made = Table.grid(padding=(0, 3, 0, 0))
    made.add_column(overflow="fold", style="cyan")
    person = to_people().is_terminal or "COLUMNS" in os.environ
    if person:
        made.add_column(overflow="fold", ratio=1)
    for name, lines in rows:
        cells = [plain(line) for line in lines]
        made.add_row(plain(name), *(["\n".join(filter(None, cells))] if person else cells))
    return made


def plain(text: str) -> str:
    """`text` with its brackets kept from being read as markup."""
    return escape(text)


def count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun.

    >>> count(1, "family", "families"), count(2, "mechanism")
    ('1 family', '2 mechanisms')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _plain(value: object) -> Any:
    """What JSON has no form for, as something that it has."""
    if isinstance(value, set | frozenset | tuple):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "items"):
        return dict(value.items())
    return str(value)
