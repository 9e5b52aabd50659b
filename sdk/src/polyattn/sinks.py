"""A sink for diagnostics events that shows in the terminal what goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyattn_core.diagnostics import (
    AttentionComputed,
    Event,
    KernelCompiled,
    MechanismCreated,
    MetricMeasured,
    ModeChanged,
    PluginFailed,
)
from polyattn_core.sinks import Sink

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


@dataclass(slots=True)
class _Calls:
    """What is known of the calls of one mechanism."""

    created: int = 0
    calls: int = 0
    seconds: float = 0.0
    shapes: str = ""
    dtype: str = ""
    entropy: float = 0.0
    with_entropy: int = 0
    mode: str = ""


class LiveSink(Sink):
    """A table that follows events: what each mechanism was asked for, and how long it took.

    Below it: kernels that were compiled or loaded, metrics as they were measured last, plugins that
    failed. Where the output is no terminal, the table is printed once, in the end.

    Parameters
    ----------
    console
        Where to print; standard output by default.
    refresh
        How often a second.

    Examples
    --------
    >>> import polyattn as pa
    >>> from polyattn.sinks import LiveSink
    >>> with LiveSink():  # doctest: +SKIP
    ...     flash(tokens)
    """

    def __init__(self, console: Console | None = None, *, refresh: float = 4.0) -> None:
        super().__init__()
        self._console = console
        self._refresh = refresh
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._mechanisms: dict[str, _Calls] = {}
        self._kernels: dict[bool, list[float]] = {False: [], True: []}
        self._metrics: dict[str, float] = {}
        self._failed: dict[str, str] = {}

    def open(self) -> None:
        from rich.live import Live

        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=self._refresh,
        )
        self._live.start()

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def receive(self, event: Event) -> None:
        with self._lock:
            match event:
                case AttentionComputed():
                    self._count(event)
                case MechanismCreated():
                    self._of(event.name).created += 1
                case ModeChanged():
                    self._of(event.name).mode = event.after
                case KernelCompiled():
                    self._kernels[event.from_cache].append(event.seconds)
                case MetricMeasured():
                    self._metrics[event.metric] = event.value
                case PluginFailed():
                    self._failed[event.plugin] = event.reason

    def render(self) -> RenderableType:
        """What is shown now, for rich to print."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title="polyattn")
        table.add_column("mechanism")
        for heading in ("made", "calls", "total", "mean"):
            table.add_column(heading, justify="right")
        table.add_column("last shapes")
        table.add_column("mean entropy", justify="right")
        with self._lock:
            # Text, not markup: a square bracket in a name is one.
            for name, found in self._mechanisms.items():
                table.add_row(Text(name), *map(Text, _cells(found)))
            notes = [Text(line) for line in self._notes()]
        return Group(table, *notes)

    def _of(self, name: str) -> _Calls:
        return self._mechanisms.setdefault(name, _Calls())

    def _count(self, event: AttentionComputed) -> None:
        found = self._of(event.name)
        found.calls += 1
        found.seconds += event.seconds
        shapes = dict.fromkeys((event.query_shape, event.key_shape, event.value_shape))
        found.shapes = " · ".join("×".join(map(str, shape)) for shape in shapes)
        found.dtype = event.dtype
        if "entropy" in event.statistics:
            found.entropy += event.statistics["entropy"]
            found.with_entropy += 1

    def _notes(self) -> list[str]:
        lines = []
        for from_cache, word in ((False, "compiled"), (True, "loaded")):
            seconds = self._kernels[from_cache]
            if seconds:
                lines.append(f"kernels {word}: {len(seconds)} in {_time(sum(seconds))}")
        lines += [f"{metric}: {value:.4g}" for metric, value in self._metrics.items()]
        lines += [f"failed: {plugin}: {reason}" for plugin, reason in self._failed.items()]
        return lines


def _cells(found: _Calls) -> list[str]:
    mode = f" ({found.mode})" if found.mode else ""
    if not found.calls:
        return [str(found.created), "0", "", "", mode.strip(), ""]
    return [
        str(found.created),
        str(found.calls),
        _time(found.seconds),
        _time(found.seconds / found.calls),
        f"{found.shapes} {found.dtype}{mode}",
        f"{found.entropy / found.with_entropy:.3f}" if found.with_entropy else "",
    ]


def _time(seconds: float) -> str:
    """Three digits with a fitting unit.

    >>> _time(0.0123), _time(3.2), _time(4.5e-5)
    ('12.3 ms', '3.2 s', '45 µs')
    """
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.1f} s"
