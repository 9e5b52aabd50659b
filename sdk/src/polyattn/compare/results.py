"""What a comparison found: frozen, printable, and ready for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of quality."""

    name: str
    title: str
    higher_is_better: bool
    description: str
    percent: bool = False
    best: float = math.inf
    """The value of a perfect prediction, at which intervals end."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over splits, with its 95 % confidence interval."""

    mean: float
    standard_error: float
    """Corrected for training sets that overlap (Nadeau and Bengio, 2003)."""
    low: float
    high: float
    splits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sharpness:
    """How sharp the weights were made, by which option, and why."""

    option: str
    value: float
    """Median over the splits."""
    splits: tuple[float, ...]
    curve: tuple[tuple[float, float, int], ...]
    """(value, mean validation score, splits in which it was tried), in the order of values."""
    on_border: bool
    """The best value tried was the last one: a better one may lie beyond."""
    fixed: bool = False
    """Chosen by the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the leaderboard."""

    label: str
    name: str
    """Full name of the mechanism; empty for an anchor."""
    family: str
    summary: str
    anchor: bool
    """Not a mechanism of polyattn, but something to measure them by."""
    options: Mapping[str, Any]
    """All options, the chosen sharpness among them."""
    scores: Mapping[str, Estimate]
    difference: Estimate | None
    """By how much it is better than the best mechanism (negative: worse), paired by split."""
    p_value: float | None
    """Of no difference to the best mechanism: corrected resampled t-test, two-sided."""
    tied: bool
    """The difference to the best mechanism is not significant at 5 %."""
    sharpness: Sharpness | None
    seconds: float
    """Median time of one call over all test vectors."""
    memory: int
    """Bytes by which memory grew at most during that call, the output among them."""
    caveats: tuple[str, ...] = ()
    error: str = ""
    """Why there are no figures, where there are none."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A mechanism that did not take part."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What was compared on."""

    name: str
    description: str
    arguments: tuple[str, ...]
    """What the command line takes to load it again; empty for arrays."""
    samples: int
    coordinates: int
    dim: int
    """Width of queries and keys: the coordinates that are not hidden."""
    classes: tuple[str, ...]
    train: int
    test: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A test sample in the plane of the two main components."""

    x: float
    y: float
    truth: str | float
    predicted: str | float
    error: float
    """Share of the splits in which it was wrong; or the distance to the truth, in deviations."""
    row: int


@dataclass(frozen=True, slots=True)
class Errors:
    """Where the best mechanism goes wrong, over the test parts of all splits."""

    label: str
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true and predicted class; empty where there are no classes."""
    points: tuple[Point, ...]
    explained: tuple[float, float]
    """Share of the variance along each axis of the plane."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which mechanism to take, and how to build it."""

    row: Row
    reason: str
    snippet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome of :func:`polyattn.compare.compare`."""

    data: DataSummary
    task: str
    metric: Metric
    """What rows are ranked by."""
    metrics: tuple[Metric, ...]
    tuned_for: Metric
    """What sharpness was tuned for; the metric, but for nDCG."""
    rows: tuple[Row, ...]
    """Best first; those that failed at the end."""
    left_out: tuple[LeftOut, ...]
    settings: Settings
    environment: Mapping[str, str]
    seconds: float
    memory_method: str
    """How `Row.memory` was measured."""
    errors: Errors | None

    @property
    def best(self) -> Row | None:
        """The mechanism with the best mean; None where all failed."""
        return next((row for row in self.rows if not row.anchor and not row.error), None)

    @property
    def tied(self) -> tuple[Row, ...]:
        """Mechanisms that cannot be told from the best, itself included."""
        return tuple(row for row in self.rows if row.tied and not row.anchor)

    @property
    def failed(self) -> tuple[Row, ...]:
        """Rows without figures."""
        return tuple(row for row in self.rows if row.error)

    def row(self, label: str) -> Row:
        """The row with this label, or with this full name."""
        for row in self.rows:
            if label in (row.label, row.name):
                return row
        raise KeyError(f"{label!r} is not among {', '.join(row.label for row in self.rows)}")

    def recommend(self) -> Recommendation | None:
        """The fastest within one standard error of the best; None where all failed."""
        from ._words import recommend

        return recommend(self)

    @property
    def command(self) -> str:
        """The command that runs this again; empty where the data came as arrays."""
        from ._words import command

        return command(self)

    def summary(self) -> tuple[str, ...]:
        """What was done and found, in plain sentences."""
        from ._words import summary

        return summary(self)

    def table(self, width: int = 110) -> str:
        """The leaderboard as text."""
        from ._terminal import as_text

        return as_text(self, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from ._terminal import report

        yield report(self, options.max_width)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the points of the picture, ready for JSON; NaN becomes None."""
        found: dict[str, Any] = _plain(self)
        if self.errors is not None:
            del found["errors"]["points"]
        best, advice = self.best, self.recommend()
        found["best"] = None if best is None else best.label
        found["tied"] = [row.label for row in self.tied]
        found["recommended"] = None if advice is None else advice.row.label
        found["snippet"] = None if advice is None else advice.snippet
        found["command"] = self.command
        found["summary"] = list(self.summary())
        return found

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def save_html(self, path: str | Path) -> Path:
        """Write a page with tables and charts that needs no network.

        Raises
        ------
        DependencyError
            If altair or vl-convert-python is not installed.
        """
        from ._page import render

        path = Path(path)
        path.write_text(render(self), encoding="utf-8")
        return path


def _plain(value: Any) -> Any:
    """Dataclasses, models, tuples and NumPy scalars as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
