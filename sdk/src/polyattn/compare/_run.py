"""The comparison itself."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.config import build_config
from polyattn_core.errors import ConfigError

from . import _measure
from ._assemble import find_errors, make_rows
from ._checks import Checked, check
from ._folds import Fold, make_folds
from ._optional import limited_threads, need
from ._selection import select, split_names
from ._smoothers import Candidate, NearestNeighbours, NumpySoftmax
from ._tasks import Classification, Regression, Task
from ._trial import run
from .data import Dataset, load
from .results import Comparison, DataSummary, LeftOut, Metric
from .settings import Settings

PATIENCE = 6
"""Equal shares of the budget that one mechanism may use."""
COMMON = ("standard", "sparse")
"""Families of what is usual, and fast."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a comparison is. `scores` are means over the splits finished, best first."""

    done: int
    total: int
    label: str
    """What is being looked at."""
    warm: bool
    """Its kernels are compiled."""
    metric: Metric
    scores: tuple[tuple[str, float], ...]


def compare(
    data: Any,
    labels: Any = None,
    mechanisms: str | Iterable[str] | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Comparison:
    """Compare attention mechanisms as kernel smoothers on data.

    Queries are test vectors, keys are training vectors, and values are what is known of these:
    one-hot labels, numbers, or coordinates that are hidden from the queries. The output of
    attention is then a prediction.

    Parameters
    ----------
    data
        Vectors (samples, coordinates); the name of a bundled data set; or the path of a .npy,
        .npz, .csv, .tsv or .parquet file.
    labels
        Class or number of each sample; or the name of a column or the path of a file. Without
        labels, a quarter of the coordinates is hidden and predicted.
    mechanisms
        Names, wildcards or names with options ("flash", "*-max", "top-k[k=16]"), as a sequence or
        separated by commas. By default all that are installed and can act as a smoother.
    progress
        Called after each step.
    **settings
        Fields of :class:`~polyattn.compare.Settings`: `family`, `exclude`, `options`, `task`,
        `metric`, `scale`, `splits`, `test_size`, `seed`, `limit`, `threads`, `dtype`,
        `time_limit`, `budget`.

    Returns
    -------
    Comparison
        The same for the same arguments, but for times and memory; with a `budget`, what takes part
        depends on the machine.

    Raises
    ------
    DataError
        If the data cannot be compared on: ragged, not finite, empty, too few samples of a class …
    ConfigError
        If a setting is unknown or out of bounds.
    RegistryError
        If no mechanism has a name that was given.
    DependencyError
        If scikit-learn is not installed.

    Notes
    -----
    Sharpness is tuned on a validation part of the training data of each split: for log-loss where
    there are classes, for the metric otherwise. Intervals and p-values are corrected for
    overlapping training sets. A mechanism that fails has a row that says why.

    Examples
    --------
    >>> result = compare("iris", mechanisms="scaled-dot-product,l2", splits=3)  # doctest: +SKIP
    >>> result.best.label, round(result.best.scores["accuracy"].mean, 2)  # doctest: +SKIP
    ('l2', 0.96)
    """
    start = time.perf_counter()
    if mechanisms is not None:
        settings["mechanisms"] = split_names(mechanisms)
    if isinstance(settings.get("exclude"), str):
        settings["exclude"] = split_names(settings["exclude"])
    chosen = build_config(Settings, settings, mechanism="compare")
    need("sklearn", "scikit-learn", "compare")
    found = load(data, labels)
    checked = check(found, chosen)
    folds = make_folds(checked, chosen)
    task: Task = Classification(len(checked.classes)) if checked.classes else Regression()
    metric = _metric(task, chosen)
    dim = folds[0].test.query.shape[1]
    mechanisms_found, left_out = select(chosen, dim)
    if chosen.budget is not None:  # those that most would try are tried first
        mechanisms_found.sort(key=lambda candidate: candidate.family not in COMMON)
    candidates: list[Candidate] = [NearestNeighbours(), NumpySoftmax(), *mechanisms_found]
    report = _Reporter(progress, metric, len(folds), len(candidates))
    with limited_threads(chosen.threads):
        tried = [
            run(c, task, metric, folds, chosen, report.begin(c), share)
            for c, share in _shares(candidates, chosen.budget, start)
        ]
    report.end()
    outcomes = [outcome for outcome in tried if not outcome.left_out]
    left_out += tuple(LeftOut(o.candidate.label, o.left_out) for o in tried if o.left_out)
    rows = make_rows(outcomes, task, metric, folds)
    best = next((row.label for row in rows if not row.anchor and not row.error), None)
    winner = next((o for o in outcomes if o.candidate.label == best), None)
    return Comparison(
        data=_summary(found, checked, folds),
        task=checked.task,
        metric=metric,
        metrics=task.metrics,
        tuned_for=next(m for m in task.metrics if m.name == task.tuned_for(metric.name)),
        rows=rows,
        left_out=left_out,
        settings=chosen,
        environment=_environment(),
        seconds=time.perf_counter() - start,
        memory_method=_measure.memory_method(),
        errors=None if winner is None else find_errors(winner, checked, folds, chosen),
    )


def _shares(
    candidates: Sequence[Candidate], budget: float | None, start: float
) -> Iterator[tuple[Candidate, float]]:
    """Each candidate with the seconds that it may use, from what the others have left it."""
    for place, candidate in enumerate(candidates):
        if budget is None or candidate.anchor:  # what the others are judged by is always there
            yield candidate, math.inf
        else:
            rest = budget - (time.perf_counter() - start)
            left = len(candidates) - place
            # Most use less than an equal share, and what they leave should not be wasted; but one
            # that is slow has to leave half to those after it.
            yield candidate, rest if left == 1 else rest * min(0.5, PATIENCE / left)


def _metric(task: Task, settings: Settings) -> Metric:
    if settings.metric is None:
        return task.metrics[0]
    for metric in task.metrics:
        if metric.name == settings.metric:
            return metric
    names = ", ".join(metric.name for metric in task.metrics)
    raise ConfigError("metric", settings.metric, f"a metric of this task: {names}")


class _Reporter:
    """Counts splits and tells whoever wants to know."""

    def __init__(
        self, tell: Callable[[Progress], None] | None, metric: Metric, splits: int, candidates: int
    ) -> None:
        self._tell, self._metric, self._splits = tell, metric, splits
        self._total = splits * candidates
        self._begun = 0
        self._scores: dict[str, float] = {}

    def begin(self, candidate: Candidate) -> Callable[[list[float]], None]:
        """Announce a candidate; returns what is to be told its scores after each split."""
        before = self._begun * self._splits
        self._begun += 1
        self._report(before, candidate.label, warm=False)

        def finished(scores: list[float]) -> None:
            if scores:
                self._scores[candidate.label] = float(np.mean(scores))
            self._report(before + len(scores), candidate.label)

        return finished

    def _report(self, done: int, label: str, warm: bool = True) -> None:
        if self._tell is not None:
            sign = -1 if self._metric.higher_is_better else 1
            order = sorted(self._scores.items(), key=lambda item: sign * item[1])
            self._tell(Progress(done, self._total, label, warm, self._metric, tuple(order)))

    def end(self) -> None:
        """Announce the end."""
        self._report(self._total, "")


def _summary(found: Dataset, checked: Checked, folds: list[Fold]) -> DataSummary:
    return DataSummary(
        name=found.name,
        description=found.description,
        arguments=found.arguments,
        samples=len(checked.vectors),
        coordinates=checked.vectors.shape[1],
        dim=folds[0].test.key.shape[1],
        classes=checked.classes,
        train=len(folds[0].test.key),
        test=len(folds[0].test.query),
        notes=(*checked.notes, *_busy()),
    )


def _busy() -> tuple[str, ...]:
    """A note on times, where the machine had other things to do."""
    if not hasattr(os, "getloadavg"):
        return ()
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 1.5 * cores:
        return ()
    return (f"the machine was busy (load {load:.1f} on {cores} cores): times mean little",)


def _environment() -> dict[str, str]:
    """Versions and the machine, for whoever wants to repeat this."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["cores"] = str(os.cpu_count())
    for package in ("polyattn", "polyattn-core", "numpy", "numba", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from its sources
    return found
