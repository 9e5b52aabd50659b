"""A report that follows attention while it runs: metrics come from the diagnostics bus."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from polyattn_core import diagnostics
from polyattn_core.errors import ArgumentError

from .metrics import MetricType
from .report import GeometryReport, ReportBuilder


class Monitor:
    """Listens to events; :meth:`report` sums up the last ones.

    The entropy of the weights comes with every call of a mechanism that streams it; other metrics
    come from whoever publishes a `MetricMeasured`, and the coherence from changes of mode.
    Mean values over the last `window` events of each metric are reported. Thread-safe.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> from polyattn_report import Monitor
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> with Monitor() as monitor:
    ...     out = pa.attend(x, x, x, "flash")
    >>> monitor.report()["attention-entropy"].status().value
    'OK'
    """

    def __init__(self, window: int = 32) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ArgumentError("window", window, "a whole number of at least 1")
        self._lock = threading.Lock()
        self._recent: dict[MetricType, deque[float]] = {
            metric: deque(maxlen=window) for metric in MetricType
        }
        self._keys = 0
        self._undo: list[Callable[[], None]] = []
        self.calls = 0
        """Calls of mechanisms that were seen."""

    def __enter__(self) -> Self:
        if self._undo:
            raise ArgumentError("monitor", "one that listens already", "one that does not")
        self._undo = [
            diagnostics.subscribe(diagnostics.AttentionComputed, self._attended),
            diagnostics.subscribe(diagnostics.MetricMeasured, self._measured),
            diagnostics.subscribe(diagnostics.ModeChanged, self._changed),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def report(self) -> GeometryReport:
        """The report on what was seen so far.

        Raises
        ------
        ArgumentError
            Where nothing was.
        """
        builder = ReportBuilder()
        with self._lock:
            if self._keys:
                builder.with_keys(self._keys)
            for metric, recent in self._recent.items():
                if recent:
                    builder.with_metric(metric, sum(recent) / len(recent))
        return builder.build()

    def _attended(self, event: Any) -> None:
        with self._lock:
            self.calls += 1
            self._keys = int(event.key_shape[-2])
            entropy = event.statistics.get("entropy")
            if entropy is not None:
                self._recent[MetricType.ATTENTION_ENTROPY].append(max(0.0, entropy))

    def _measured(self, event: Any) -> None:
        metric = next((known for known in MetricType if known == event.metric), None)
        if metric is not None:
            with self._lock:
                self._recent[metric].append(event.value)

    def _changed(self, event: Any) -> None:
        with self._lock:
            self._recent[MetricType.TOPOLOGY_COHERENCE].append(event.coherence)
