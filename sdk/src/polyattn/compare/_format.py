"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .results import Estimate, Metric

UNKNOWN = "–"


def score(metric: Metric, value: float) -> str:
    """A score with its unit: `97.1 %`, `0.142`."""
    if not math.isfinite(value):
        return UNKNOWN
    return f"{100 * value:.1f} %" if metric.percent else f"{value:.3f}"


def with_margin(metric: Metric, found: Estimate) -> str:
    """A score and half the width of its interval: `97.1 ± 0.8 %`."""
    margin = max(found.high - found.mean, found.mean - found.low)
    if metric.percent:
        return f"{100 * found.mean:.1f} ± {100 * margin:.1f} %"
    return f"{found.mean:.3f} ± {margin:.3f}"


def interval(metric: Metric, found: Estimate) -> str:
    """The interval of a score: `96.3 % to 97.9 %`."""
    return f"{score(metric, found.low)} to {score(metric, found.high)}"


def difference(metric: Metric, value: float) -> str:
    """A difference with its sign; of percentages, in points."""
    if not math.isfinite(value):
        return UNKNOWN
    number = f"{100 * value:+.1f}" if metric.percent else f"{value:+.3f}"
    return number.replace("-", "−") if number.strip("+-0.") else "0"


def seconds(value: float) -> str:
    """A time: `820 µs`, `1.3 ms`, `2.1 s`."""
    if not math.isfinite(value):
        return UNKNOWN
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if value * factor < 1000:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def megabytes(count: int) -> str:
    """Bytes as megabytes; less than can be measured is said to be so."""
    if count < 100_000:
        return "<0.1 MB"
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def sharpness(value: float) -> str:
    """A sharpness to three digits: `0.316`, `1.3e-05`."""
    return f"{value:.3g}"


def count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 class`, `3 classes`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listing(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence: `a, b and c`; of many, the first and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
