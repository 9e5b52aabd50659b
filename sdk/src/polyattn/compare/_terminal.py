"""A comparison in the terminal: while it runs, and when it is done."""

from __future__ import annotations

import io
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from . import _format as fmt
from .results import Comparison, Metric, Row

if TYPE_CHECKING:
    from ._run import Progress

BEST, TIED, ANCHOR = "★", "≈", "◇"
NARROW = 110
"""Terminals with fewer columns than this show less."""
NARROWER = 90
"""Terminals with fewer columns than this show one metric, and no memory."""


def as_text(found: Comparison, width: int) -> str:
    """The leaderboard without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(leaderboard(found, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def report(found: Comparison, width: int = 120) -> RenderableType:
    """Everything there is to say, for a terminal of that width."""
    parts: list[RenderableType] = []
    if len(found.failed) < len(found.rows):
        parts += [leaderboard(found, width), _legend(found), Text()]
    parts += [Padding(Text(f"• {sentence}"), (0, 0, 0, 1)) for sentence in found.summary()]
    parts += _troubles(found)
    advice = found.recommend()
    if advice is not None:
        parts += [
            Text(),
            Text.assemble(
                ("Recommended: ", "bold"), (advice.row.label, "bold green"), f" – {advice.reason}."
            ),
            Padding(Syntax(advice.snippet, "python", theme="ansi_dark", background_color="default",
                           word_wrap=True), (1, 0, 0, 2)),
        ]  # fmt: skip
    if found.command:
        parts += [Text(), Text.assemble(("Again: ", "dim"), found.command)]
    return Group(*parts)


def leaderboard(found: Comparison, width: int) -> Table:
    """One line for each candidate that was measured, best first."""
    metric, wide = found.metric, width >= NARROW
    shown = found.metrics if width >= NARROWER else ()
    others = [other for other in shown if other.name != metric.name]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=_title(found),
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", width=1)
    table.add_column("mechanism", no_wrap=True, overflow="ellipsis")
    table.add_column(_heading(metric), justify="right", no_wrap=True)
    if wide:
        table.add_column("to best", justify="right", no_wrap=True)
    for other in others:
        table.add_column(_heading(other), justify="right", no_wrap=True)
    if wide:
        table.add_column("sharpness", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    if shown:
        table.add_column("memory", justify="right", no_wrap=True)
    for row in found.rows:
        if row.error:
            continue
        cells: list[RenderableType] = [
            _mark(found, row),
            Text(row.label, style=_style(found, row)),
            Text(fmt.with_margin(metric, row.scores[metric.name]), style=_style(found, row)),
        ]
        if wide:
            cells.append(_difference(found, row))
        cells += [fmt.score(other, row.scores[other.name].mean) for other in others]
        if wide:
            cells.append(_sharpness(row))
        cells.append(fmt.seconds(row.seconds))
        if shown:
            cells.append(fmt.megabytes(row.memory))
        table.add_row(*cells, style="dim" if row.anchor else None)
    return table


def _title(found: Comparison) -> Text:
    data = found.data
    size = f"{data.samples:,} × {data.coordinates}"
    classes = f", {fmt.count(len(data.classes), 'class', 'classes')}" if data.classes else ""
    return Text.assemble((data.name, "bold"), (f"  {size}{classes}  {data.description}", "dim"))


def _heading(metric: Metric) -> str:
    return f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"


def _mark(found: Comparison, row: Row) -> Text:
    if row.anchor:
        return Text(ANCHOR)
    if row is found.best:
        return Text(BEST, style="green")
    return Text(TIED if row.tied else "", style="green")


def _style(found: Comparison, row: Row) -> str:
    if row.anchor:
        return ""
    return "bold green" if row is found.best else "green" if row.tied else ""


def _difference(found: Comparison, row: Row) -> Text:
    if row is found.best or row.difference is None:
        return Text("")
    return Text(fmt.difference(found.metric, row.difference.mean))


def _sharpness(row: Row) -> str:
    found = row.sharpness
    if found is None:
        return fmt.UNKNOWN
    marks = (" (fixed)" if found.fixed else "") + (" (border)" if found.on_border else "")
    return f"{found.option} {fmt.sharpness(found.value)}{marks}"


def _legend(found: Comparison) -> Text:
    return Text(
        f"{BEST} best   {TIED} tied with it   {ANCHOR} anchor   ± half the 95 % interval over "
        f"{found.settings.splits} splits   ↑ more, ↓ less is better",
        style="dim",
    )


def _troubles(found: Comparison) -> list[RenderableType]:
    """What failed, what was left out, and what to know of the rest."""
    lines: list[RenderableType] = [
        Text.assemble((f" ✗ {row.label}: ", "bold red"), row.error) for row in found.failed
    ]
    for row in found.rows:
        lines += [Text.assemble((f" ! {row.label}: ", "yellow"), note) for note in row.caveats]
    lines += [Text.assemble((" ! ", "yellow"), note) for note in found.data.notes]
    reasons: dict[str, list[str]] = {}
    for item in found.left_out:
        reasons.setdefault(item.reason, []).append(item.name)
    for reason, names in reasons.items():
        lines.append(Text(f" – left out: {', '.join(names)} ({reason})", style="dim"))
    return [Text(), *lines] if lines else []


def _doing(progress: Progress) -> str:
    if not progress.label:
        return "putting it together"
    return escape(progress.label) + ("" if progress.warm else " (getting ready)")


class Display:
    """A progress bar with the best so far, on the console it is given; nothing if that is a file.

    Call it with each :class:`~polyattn.compare.Progress`.
    """

    def __init__(self, console: Console, best: int = 8) -> None:
        self._best = best
        self._bar = Bar(
            TextColumn("{task.description}", style="bold"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("reading the data", total=None)
        self._live = Live(self._bar, console=console, transient=True, refresh_per_second=8)
        self._shown = console.is_terminal

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        self._bar.update(
            self._task,
            description=_doing(progress),
            completed=progress.done,
            total=progress.total,
        )
        if self._shown:
            self._live.update(Group(self._so_far(progress), self._bar))

    def _so_far(self, progress: Progress) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for place, (label, score) in enumerate(progress.scores[: self._best], start=1):
            number = Text(f"{place}", style="dim")
            table.add_row(number, Text(label), fmt.score(progress.metric, score))
        return table
