"""Time of a report, metric by metric, and how it grows with the number of vectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from polyattn_core import resolver
from polyattn_core.errors import PolyattnError
from polyattn_report import MetricType, recommend
from polyattn_report.analysis import neighbour_recall

TITLE = "Seconds of a report on n × 64 float32, and its growth from the size before"


def measure(sizes: tuple[int, ...] = (1_000, 10_000, 100_000)) -> list[dict[str, object]]:
    """One row a metric, one of the whole."""
    import polyattn  # noqa: F401 - finds the families

    parts: dict[str, Callable[..., object]] = {}
    for metric in MetricType:
        try:
            parts[metric.value] = resolver.current().resolve(metric.value, "metric")
        except PolyattnError:
            continue
    parts["neighbour recall"] = neighbour_recall
    parts["report"] = recommend
    rows: list[dict[str, object]] = []
    vectors = {n: np.random.default_rng(0).standard_normal((n, 64), np.float32) for n in sizes}
    for name, part in parts.items():
        row: dict[str, object] = {"what": name}
        before: tuple[int, float] | None = None
        for n, x in vectors.items():
            seconds = _seconds(partial(part, x, x, x))
            row[f"{n:,}"] = seconds
            if before:
                row[f"exponent to {n:,}"] = math.log(seconds / before[1]) / math.log(n / before[0])
            before = (n, seconds)
        rows.append(row)
    return rows


def _seconds(call: Callable[[], object]) -> float:
    """The least of three calls, after one that imports and compiles."""
    call()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    for row in measure():
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
