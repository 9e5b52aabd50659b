"""A report in the terminal: bars with the zones of each metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {"OK": "green", "WATCH": "cyan", "WARNING": "yellow", "CRITICAL": "bold red"}
_WIDE = 24


def panel(choice: Any, data: str, shape: tuple[int, ...]) -> RenderableType:
    """The report of a choice, for people."""
    title = f"{data}: {' × '.join(f'{size:,}' for size in shape)}"
    return _panel(choice.report, f"take {choice.mechanism}", title)


def running(report: Any, title: str) -> RenderableType:
    """The report on attention that runs; the title says how much of it was seen."""
    return _panel(report, f"{report.recommendation.value} attention advised", title)


def _panel(report: Any, advice: str, title: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    health = report.health_score
    colour = "green" if health >= 0.8 else "yellow" if health >= 0.5 else "bold red"
    head = Text.assemble(
        "health ", (f"{health:.2f}", colour), "   ", (advice, "bold"),
        f"   action {report.action.value}",
    )  # fmt: skip
    why = [Text(f"• {reason}") for reason in report.reasons]
    body = Group(head, Text(), _metrics(report), Text(), *why)
    return Panel.fit(body, title=title, title_align="left")


def _metrics(report: Any) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("metric", "value", "", "status", "healthy"):
        table.add_column(title, justify="right" if title == "value" else "left")
    for metric in report.metrics:
        status, limits = metric.status().value, metric.thresholds
        table.add_row(
            metric.metric_type.value, f"{metric.value:.3g}",
            Text(bar(metric.value, limits), _COLOURS[status]), Text(status, _COLOURS[status]),
            f"{limits.low:.2g} – {limits.high:.2g}",
        )  # fmt: skip
    for name, why in report.missing.items():
        table.add_row(Text(name, "dim"), Text("–", "dim"), "", Text(why, "dim"), "")
    return table


def bar(value: float, limits: Any) -> str:
    """Where a value lies between nothing and the end of its scale."""
    if not math.isfinite(value):
        return "?" * _WIDE
    top = max(limits.high, limits.critical) * (1.0 if limits.bad_when_low else 1.4)
    filled = min(_WIDE, max(1, round(_WIDE * value / top))) if value > 0 else 0
    return "█" * filled + "░" * (_WIDE - filled)
