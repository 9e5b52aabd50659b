"""``polyattn list`` and ``polyattn presets``: what is installed, from manifests alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import polyattn_registry as registry
from polyattn_core.errors import RegistryError

from ._arguments import Json, family_names, mechanism_names
from ._output import count, explained, note, plain, print_json, show, table, to_people

if TYPE_CHECKING:
    from polyattn_core.spec import PresetSpec

_WILDCARDS = frozenset("*?[")


def list_entries(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            help="Part of a name, or a pattern with wildcards * and ?.",
            autocompletion=mechanism_names,
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY", help="Of this family only.", autocompletion=family_names,
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG", help="With this tag; may be repeated to narrow down.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(metavar="KIND", help="mechanism, preset, metric, loss …"),
    ] = "mechanism",
    as_json: Json = False,
) -> None:  # fmt: skip
    """List what is installed.

    Reads manifests only: no kernel is loaded.
    """
    wanted = pattern or "*"
    if _WILDCARDS.isdisjoint(wanted):
        wanted = f"*{wanted}*"
    names = registry.available(wanted, kind=kind, family=family, tags=tag or ())
    entries = [(name, registry.spec(name, kind)) for name in names]
    if as_json:
        print_json([{**e.to_dict(), "name": name, "full_name": e.full_name} for name, e in entries])
    elif entries:
        _show_entries(entries, kind)
    _tell_what_is_missing(bool(entries), pattern, kind)


def presets(
    mechanism: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Of this mechanism only.",
            autocompletion=mechanism_names,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List named sets of options.

    Use one as polyattn run NAME@PRESET, or pa.create("NAME@PRESET").
    """
    found = registry.presets(mechanism)
    if as_json:
        print_json([{**preset.to_dict(), "full_name": preset.full_name} for preset in found])
        return
    if not found:
        of = f"{mechanism} has no presets" if mechanism else "no preset is installed"
        note(f"{of}; polyattn list shows what is")
        return
    show(explained((f"{p.mechanism}@{p.name}", _lines(p)) for p in found))


def _show_entries(entries: list[tuple[str, Any]], kind: str) -> None:
    # In a pipe each line has to make sense by itself; a person reads the family once.
    person = to_people().is_terminal
    rows = table("Family", "Name", "Summary", unbroken=(0, 1))
    rows.columns[0].style, rows.columns[1].style = "", "cyan"
    before = ""
    for name, entry in sorted(entries, key=lambda found: found[1].family):
        repeated = person and entry.family == before
        rows.add_row("" if repeated else plain(entry.family), plain(name), plain(entry.summary))
        before = entry.family
    show(rows)
    if person:
        families = {entry.family for _, entry in entries}
        tally = f"{count(len(entries), kind)} of {count(len(families), 'family', 'families')}"
        hint = "; polyattn info NAME explains one" if kind == "mechanism" else ""
        show("", f"{tally}{hint}")


def _tell_what_is_missing(found: bool, pattern: str | None, kind: str) -> None:
    """Never leave out silently what is not there because a plugin failed."""
    statuses = registry.plugins()
    failed = [status for status in statuses if status.state == "failed"]
    for status in failed:
        note(f"{status.distribution} failed to load: {status.reason}; run polyattn doctor")
    # Core and the SDK are plugins too, but offer sinks alone.
    if not any(status.state != "loaded" or status.mechanisms for status in statuses):
        note("no family is installed; for a start: pip install polyattn-standard polyattn-sparse")
    elif not found and pattern and _WILDCARDS.isdisjoint(pattern):
        try:
            registry.spec(pattern, kind)
        except RegistryError as error:  # which says what was meant, or what to install
            note(str(error))
        else:
            note(f"{pattern} is there, but not with what else was asked for")
    elif not found:
        note(f"no {kind} matches")


def _lines(preset: PresetSpec) -> tuple[str, ...]:
    options = ", ".join(f"{name}={_text(value)}" for name, value in preset.options.items())
    return preset.summary, preset.source, options


def _text(value: object) -> str:
    from json import dumps

    return value if isinstance(value, str) else dumps(value, default=str)
