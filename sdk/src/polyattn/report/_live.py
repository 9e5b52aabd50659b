"""The report of attention while it runs, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from polyattn_core.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


class live:
    """Show health, metrics and their reasons while attention runs in this block.

    Metrics come from the diagnostics bus: the entropy with every call of a mechanism that streams
    it, others from whoever measures them; each is a mean over the last `window` events. Where the
    output is no terminal, the report is printed once, in the end.

    Parameters
    ----------
    window
        How many events of each metric count.
    refresh
        How often a second the view is drawn.
    console
        Where to print; standard output by default.

    Raises
    ------
    NotInstalledError
        Where polyattn-report is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import polyattn as pa
    >>> from polyattn.report import live
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> with live() as view:  # doctest: +SKIP
    ...     for _ in range(100):
    ...         out = pa.attend(x, x, x, "flash")
    >>> view.report().health_score  # doctest: +SKIP
    1.0
    """

    def __init__(
        self, window: int = 32, *, refresh: float = 4.0, console: Console | None = None
    ) -> None:
        from . import _entry

        if not 0 < refresh <= 60:
            raise ArgumentError("refresh", refresh, "a number of times a second, above 0, up to 60")
        self._monitor = _entry("monitor")(window)
        self._refresh, self._console = refresh, console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._monitor.__enter__()
        self._live = Live(
            console=self._console, get_renderable=self.render, refresh_per_second=self._refresh
        )
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        shown, self._live = self._live, None
        self._monitor.__exit__(*error)
        if shown is not None:
            shown.stop()

    def report(self) -> Any:
        """The report on what was seen so far."""
        return self._monitor.report()

    def render(self) -> RenderableType:
        """What is shown now, for rich to print."""
        from rich.text import Text

        from .terminal import running

        try:
            report = self.report()
        except ArgumentError:  # no metric yet
            return Text(f"{self._calls()}, no metric measured yet", "dim")
        return running(report, self._calls())

    def _calls(self) -> str:
        count = self._monitor.calls
        return f"{count:,} call{'' if count == 1 else 's'} of attention"
