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
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    report = choice.report
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
    health = report.health_score
    colour = "green" if health >= 0.8 else "yellow" if health >= 0.5 else "bold red"
    head = Text.assemble(
        "health ", (f"{health:.2f}", colour), "   take ", (choice.mechanism, "bold"),
        f"   action {report.action.value}",
    )  # fmt: skip
    why = [Text(f"• {reason}") for reason in report.reasons]
    title = f"{data}: {' × '.join(f'{size:,}' for size in shape)}"
    return Panel.fit(Group(head, Text(), table, Text(), *why), title=title, title_align="left")


def bar(value: float, limits: Any) -> str:
    """Where a value lies between nothing and the end of its scale."""
    if not math.isfinite(value):
        return "?" * _WIDE
    top = max(limits.high, limits.critical) * (1.0 if limits.bad_when_low else 1.4)
    filled = min(_WIDE, max(1, round(_WIDE * value / top))) if value > 0 else 0
    return "█" * filled + "░" * (_WIDE - filled)
