"""Arguments that several commands take, and what shells complete them with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

import polyattn_registry as registry


def mechanism_names(incomplete: str) -> list[tuple[str, str]]:
    """Names of installed mechanisms with their summaries, for completion."""
    return _completions("mechanism", incomplete)


def family_names(incomplete: str) -> list[str]:
    """Names of installed families, for completion."""
    return [s.family for s in registry.plugins() if s.family.startswith(incomplete)]


def _completions(kind: str, incomplete: str) -> list[tuple[str, str]]:
    # What is typed so far is text, not a pattern.
    names = [name for name in registry.available(kind=kind) if name.startswith(incomplete)]
    return [(name, registry.spec(name, kind).summary) for name in names]


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of a mechanism, such as flash or sparse/flash; polyattn list shows them.",
        autocompletion=mechanism_names,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON document instead.")]


def options_from(settings: Iterable[str]) -> dict[str, Any]:
    """Options from texts ``key=value``; values are JSON where they can be read as such.

    A dot reaches into an option that has options of its own.

    >>> options_from(["causal=true", "scale=0.5", "position.kind=rope", "position.base=500"])
    {'causal': True, 'scale': 0.5, 'position': {'kind': 'rope', 'base': 500}}
    """
    options: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        *parents, name = path.strip().split(".")
        if not equals or not all((*parents, name)):
            raise typer.BadParameter(f"{setting!r} is not of the form key=value")
        into = options
        for parent in parents:
            into = into.setdefault(parent, {})
            if not isinstance(into, dict):
                raise typer.BadParameter(f"{setting!r}: {parent} is set to {into!r} already")
        into[name] = _value(text.strip())
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
