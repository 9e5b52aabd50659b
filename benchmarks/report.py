"""Results as tables on the terminal and in Markdown, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Rows = Sequence[Mapping[str, Any]]


def table(title: str, rows: Rows) -> Table:
    """A table for the terminal."""
    made = Table(title=title, title_justify="left")
    for column in columns(rows):
        numeric = any(isinstance(row.get(column), float) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(text(row.get(column)) for column in columns(rows)))
    return made


def columns(rows: Rows) -> list[str]:
    """All columns, in the order in which they come."""
    return list(dict.fromkeys(column for row in rows for column in row))


def text(value: object) -> str:
    """A value as tables show it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Write tables to a Markdown file: between its marks, where it has them."""
    new = markdown(results)
    old = file.read_text("utf-8") if file.exists() else ""
    if BEGIN in old and END in old:
        head, tail = old[: old.index(BEGIN) + len(BEGIN)], old[old.index(END) :]
        new = f"{head}\n\n{new}\n{tail}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(new, "utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, and what they were measured on."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    processor = f"{machine['processor']} ({machine['vector_bytes']}-byte vectors)"
    system = f"{machine['threads']} threads, {machine['system']}, Python {machine['python']}"
    system += f", load {machine['load']} before the run"
    lines = [f"Measured {results['date']} on {processor}, {system}; {versions}."]
    for part in results["parts"]:
        lines += ["", f"### {part['title']}", ""]
        if part["error"]:
            lines.append(f"Not measured: {part['error']}")
        if part["rows"]:
            names = columns(part["rows"])
            lines.append("| " + " | ".join(names) + " |")
            lines.append("|" + " --- |" * len(names))
            for row in part["rows"]:
                lines.append("| " + " | ".join(text(row.get(name)) for name in names) + " |")
    return "\n".join(lines) + "\n"


def picture(rows: Rows, folder: Path) -> list[Path]:
    """Cost against length as HTML and PNG; returns the files."""
    import altair

    data = altair.Data(values=[dict(row) for row in rows])
    base = altair.Chart(data).encode(
        altair.X("tokens:Q", scale=altair.Scale(type="log", base=2), title="tokens"),
        altair.Color("what:N", title=None),
    )

    def panel(column: str, title: str) -> Any:
        y = altair.Y(f"{column}:Q", scale=altair.Scale(type="log"), title=title)
        chart = base.transform_filter(f"datum['{column}'] > 0").encode(y)
        return (chart.mark_line() + chart.mark_point(filled=True)).properties(width=360, height=300)

    chart = (panel("ms", "milliseconds") | panel("MB", "MB beyond inputs and output")).properties(
        title="Cost of one call against length: one head of 64, float32"
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "cost-against-length.html", folder / "cost-against-length.png"]
    for file in files:
        chart.save(
            str(file), **({"inline": True} if file.suffix == ".html" else {"scale_factor": 2})
        )
    return files
