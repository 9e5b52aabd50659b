"""``polyattn plugins`` and ``polyattn doctor``: is everything in order?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.text import Text

import polyattn_registry as registry

from ._arguments import Json
from ._output import count, fields, note, plain, print_json, show, table, to_people

if TYPE_CHECKING:
    from rich.table import Table

    from polyattn_registry import PluginStatus

    from .._health import Finding

_COLOURS = {
    "loaded": "green",
    "failed": "bold red",
    "disabled": "yellow",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
}


def plugins(as_json: Json = False) -> None:
    """List installed plugins.

    With what became of each, how many mechanisms it offers, and how long its manifest took.
    """
    statuses = registry.plugins()
    if as_json:
        print_json([_as_dict(status) for status in statuses])
        return
    if not statuses:
        note("no plugin is installed; for a start: pip install polyattn-standard polyattn-sparse")
        return
    show(_plugin_table(statuses))
    for status in statuses:
        if status.reason:
            note(f"{status.distribution}: {status.reason}")


def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, processor, cache, plugins.

    Exits with 1 where something is wrong.
    """
    from .._health import examine

    statuses = registry.plugins()
    sections = examine()
    failed = [status for status in statuses if status.state == "failed"]
    findings = [finding for found in sections.values() for finding in found]
    problems = [finding for finding in findings if finding.state == "problem"]
    well = not failed and not problems
    if as_json:
        print_json(
            {
                "ok": well,
                **{
                    title.lower(): {
                        f.name: {"value": f.value, "state": f.state, "advice": f.advice}
                        for f in found
                    }
                    for title, found in sections.items()
                },
                "plugins": [_as_dict(status) for status in statuses],
            }
        )
    else:
        for title, found in sections.items():
            show(Text(title, style="bold underline"), _finding_table(found), "")
        show(Text("Plugins", style="bold underline"))
        show(_plugin_table(statuses) if statuses else "none is installed")
        for status in failed:
            show("", Text(f"{status.distribution}: {status.reason}", style="bold red"))
            show(plain(status.error.rstrip()))
        show("", _verdict(findings, failed))
    if not well:
        raise typer.Exit(1)


def _finding_table(found: list[Finding]) -> Table:
    return fields(
        (
            finding.name,
            Text(finding.value, style="" if finding.state == "ok" else _COLOURS[finding.state])
            + Text(f" ({finding.advice})" if finding.advice else ""),
        )
        for finding in found
    )


def _verdict(findings: list[Finding], failed: list[PluginStatus]) -> Text:
    problems = sum(finding.state == "problem" for finding in findings) + len(failed)
    if problems:
        return Text(f"{count(problems, 'problem')} found: see what is red", style="bold red")
    warnings = sum(finding.state == "warning" for finding in findings)
    if warnings:
        return Text(f"All works; {count(warnings, 'remark')} in yellow", style="yellow")
    return Text("All is well", style="bold green")


def _plugin_table(statuses: list[PluginStatus]) -> Table:
    # The longest names of packages need so much; a family's package bears its name.
    wide = to_people().width >= 80
    package = "Package" if wide else "Version"
    rows = table("Family", package, "State", "Mechanisms", "Import", unbroken=(0, 2))
    for name in ("Mechanisms", "Import"):
        next(column for column in rows.columns if column.header == name).justify = "right"
    for status in statuses:
        rows.add_row(
            plain(status.family or "?"),
            plain(f"{status.distribution} {status.version}" if wide else status.version),
            Text(status.state, style=_COLOURS[status.state]),
            str(status.mechanisms),
            f"{status.milliseconds:.0f} ms",
        )
    return rows


def _as_dict(status: PluginStatus) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(status)
