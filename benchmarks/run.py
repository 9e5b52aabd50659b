"""Run the benchmarks, print tables, write a JSON file with the machine and versions.

python benchmarks/run.py [--only PART …] [--json build/benchmarks.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import machine
import mechanisms
import plain_attention
import start_up
from rich.console import Console
from rich.table import Table

PARTS: dict[str, tuple[str, Callable[[], list[dict[str, object]]]]] = {
    "start-up": ("Start-up and calls", start_up.measure),
    "plain": ("Plain attention, float32: time of the alternative ÷ ours", plain_attention.forward),
    "memory": ("Peak memory beyond inputs and output", plain_attention.memory),
    "mechanisms": ("Each mechanism at 1 × 8 × 1,024 × 64, float32", mechanisms.measure),
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"))
    options = parser.parse_args()
    console = Console()
    results: dict[str, object] = {"machine": machine.describe()}
    console.print(results["machine"])
    for name in options.only:
        title, measure = PARTS[name]
        with console.status(title):
            rows = measure()
        results[name] = rows
        console.print(_table(title, rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    console.print(f"Written to {options.json}")


def _table(title: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = any(isinstance(row.get(column), float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
