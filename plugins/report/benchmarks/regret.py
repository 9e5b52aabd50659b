"""Is the advice of the report good? What it would have cost to follow it, on data of known shape.

python plugins/report/benchmarks/regret.py [--splits 5] [--json build/regret.json] [--only NAME …]

`compare` measures how well one or two representatives of each recommendation predict; the report
sees the vectors alone. Regret is how much better the best of them scored than the one advised:
accuracy where classes are predicted, R² where numbers are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, Part, Shape

from polyattn.compare import compare
from polyattn_core.arrays import Array
from polyattn_report import recommend

TITLE = "Regret of the advice of the report, of the best mechanism of eight"
MECHANISMS = (
    "flash",
    "top-k",
    "entmax15",
    "gaussian",
    "l2",
    "hyperbolic",
    "fused-mixed-curvature",
    "diffusion",
)
ALWAYS = ("flash", "gaussian", "diffusion")
"""To take always the same is what the advice has to beat."""


def regrets(splits: int = 5, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row a data set."""
    return [_row(shape, splits) for shape in SHAPES if not only or shape.name in only]


def _row(shape: Shape, splits: int) -> dict[str, Any]:
    vectors, target = shape.load()
    found = compare(vectors, target, mechanisms=MECHANISMS, splits=splits, threads=1)
    scores = {
        row.label: row.scores[found.metric.name].mean
        for row in found.rows
        if not row.anchor and not row.error
    }
    choice = recommend(_standard(vectors))
    best = max(scores, key=lambda name: scores[name])
    coherence = choice.report["topology-coherence"].value
    return {
        "data": shape.name,
        "part": shape.part.value,
        "coherence": coherence,
        "recall": choice.report.neighbour_recall,
        "metric": found.metric.title,
        "best": best,
        "score": scores[best],
        "advice": choice.mechanism,
        "regret": scores[best] - scores[choice.mechanism],
        **{f"always {name}": scores[best] - scores[name] for name in ALWAYS},
        "scores": scores,
    }


def _standard(vectors: Array) -> Array:
    deviation = vectors.std(axis=0)
    return np.asarray((vectors - vectors.mean(axis=0)) / np.where(deviation > 0, deviation, 1))


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean regrets of each part of the data sets."""
    columns = ("regret", *(f"always {name}" for name in ALWAYS))
    parts = {part: [row for row in rows if row["part"] == part] for part in Part}
    return [
        {
            "data": f"mean of {len(found)}",
            "part": part.value,
            **{name: float(np.mean([row[name] for row in found])) for name in columns},
        }
        for part, found in parts.items()
        if found
    ]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=TITLE, title_justify="left")
    names = [name for name in rows[0] if name != "scores"]
    for name in names:
        table.add_column(name)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--json", type=Path, default=Path("build/regret.json"))
    options = parser.parse_args()
    rows = regrets(options.splits, options.only)
    console = Console(width=150)
    console.print(_table([*rows, *means(rows)]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"title": TITLE, "rows": rows, "means": means(rows)}
    options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
