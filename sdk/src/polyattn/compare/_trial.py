"""One candidate on all splits: tuned, scored, timed; what fails stays with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ConfigError, PolyattnError, ShapeError

from . import _measure
from ._folds import Fold, Part
from ._optional import limited_threads
from ._smoothers import Candidate, Smoothing
from ._tasks import Classification, NotFiniteError, Task
from ._tuning import Search, search, search_grid
from .results import Metric
from .settings import Settings

PROBES = 32
"""Queries on which a search looks for a reaction; of the keys, eight times as many."""


@dataclass(slots=True, eq=False)
class Outcome:
    """What was measured of a candidate, split by split."""

    candidate: Candidate
    searches: list[Search] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    predictions: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    error: str = ""
    left_out: str = ""
    """Why it takes no part after all."""


class TimeLimitError(PolyattnError):
    """A candidate took longer than it may."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)

    def __str__(self) -> str:
        return f"given up after {self.args[0]:g} s (--time-limit)"


class _OverBudgetError(Exception):
    """A candidate used up its share of the budget."""


def run(
    candidate: Candidate,
    task: Task,
    metric: Metric,
    folds: list[Fold],
    settings: Settings,
    finished: Callable[[list[float]], None],
    share: float = math.inf,
) -> Outcome:
    """Tune, predict, score and time a candidate on all splits.

    `finished` is called once all is compiled, and after each split, with the scores so far. `share`
    is the candidate's share of the budget, in seconds; with none left, nothing is begun.
    """
    outcome = Outcome(candidate)
    if share <= 0:
        outcome.left_out = f"not reached within --budget {settings.budget:g}"
        return outcome
    try:
        candidate.prepare()
        # Compiles what has to be compiled, before the clock starts.
        first = folds[0].validation[0]
        smoothing = candidate.at(None)
        try:
            smoothing.smooth(first.query, first.key, task.values(first))
        except ShapeError as error:
            if error.argument != "value":
                raise
            # Its values have to live where its queries do; labels and numbers do not.
            outcome.left_out = (
                f"cannot take these values: got {error.value}; expected {error.accepted}"
            )
            return outcome
        if task.ranks:
            smoothing.weights(first.query[:1], first.key)
        finished([])
        begun = time.perf_counter()

        def check_time() -> None:
            taken = time.perf_counter() - begun
            if taken > settings.time_limit:
                raise TimeLimitError(settings.time_limit)
            if taken > share:
                raise _OverBudgetError

        for fold in folds:
            # At the ends of a search scores may overflow: what is not finite is dealt with.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                smoothing = _tuned(candidate, task, metric, fold, outcome, check_time)
                _test(smoothing, task, fold, outcome, check_time)
            finished(outcome.scores[metric.name])
    except _OverBudgetError:
        outcome.left_out = f"takes more than its share of --budget {settings.budget:g}"
    except (Exception, SystemExit) as error:
        # Whatever a plugin raises must not take the others down.
        text = str(error).strip().partition("\n")[0]
        known = isinstance(error, PolyattnError)
        outcome.error = text if known else f"{type(error).__name__}: {text}"
    return outcome


def _tuned(
    candidate: Candidate, task: Task, metric: Metric, fold: Fold, outcome: Outcome,
    check_time: Callable[[], None],
) -> Smoothing:  # fmt: skip
    if not candidate.option or candidate.fixed:
        outcome.searches.append(Search())
        return candidate.at(None)
    parts = [(part, task.values(part)) for part in fold.validation]
    shown: dict[float, float] = {}

    def loss(sharpness: float) -> float:
        found = []
        for part, values in parts:
            check_time()
            try:
                output = candidate.at(sharpness).smooth(part.query, part.key, values)
                prediction = task.predict(output, part)
            except (ConfigError, NotFiniteError):
                return math.inf
            found.append(task.tuning(metric.name, prediction, part))
        losses, scores = zip(*found, strict=True)
        shown[sharpness] = float(np.mean(scores))
        return float(np.mean(losses))

    def probe(sharpness: float) -> Array | None:
        check_time()
        part, values = parts[0]
        query, keys = part.query[:PROBES], slice(0, 8 * PROBES)
        try:
            output = candidate.at(sharpness).smooth(query, part.key[keys], values[keys])
            return task.predict(output, part)
        except (ConfigError, NotFiniteError):
            return None

    if candidate.grid is not None:
        keys = min(len(part.key) for part, _ in parts)
        # Many small calls: threads that spin while they wait for each other make them slow where
        # others use the machine.
        with limited_threads(1):
            found = search_grid(loss, [value for value in candidate.grid if value <= keys])
    else:
        found = search(loss, probe, candidate.whole, _typical_distance(fold.validation[0]))
    # What is tuned for, in place of the loss.
    found.curve = {value: shown[value] for value in found.curve}
    outcome.searches.append(found)
    return candidate.at(found.value)


def _typical_distance(part: Part) -> float:
    """The median distance between some queries and keys; 1 where they coincide."""
    query, key = (x[: 4 * PROBES].astype(np.float64) for x in (part.query, part.key))
    found = float(np.median(np.linalg.norm(query[:, None] - key[None, :], axis=-1)))
    return found if found > 0 else 1.0


def _test(
    smoothing: Smoothing, task: Task, fold: Fold, outcome: Outcome, check_time: Callable[[], None]
) -> None:
    part = fold.test
    values = task.values(part)

    def call() -> Array:
        check_time()
        return smoothing.smooth(part.query, part.key, values)

    prediction = task.predict(call(), part)
    times = _measure.seconds(call)
    if not outcome.predictions:
        outcome.memory = _measure.peak_memory(call)
    scores = {}
    for metric in task.metrics:
        if metric.name == "ndcg":
            assert isinstance(task, Classification)
            weights = smoothing.weights(part.query, part.key)
            scores[metric.name] = task.ranking_score(weights, part)
        else:
            scores[metric.name] = task.score(metric.name, prediction, part)
    for name, score in scores.items():
        outcome.scores.setdefault(name, []).append(score)
    outcome.seconds.extend(times)
    outcome.predictions.append(prediction)
