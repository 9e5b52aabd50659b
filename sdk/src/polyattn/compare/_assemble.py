"""From what was measured to the rows of the leaderboard and the errors of the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from polyattn_core.arrays import Array

from ._checks import Checked
from ._folds import Fold
from ._inference import LEVEL, estimate, p_value
from ._tasks import Task
from ._trial import Outcome
from ._tuning import STEPS
from .results import Errors, Estimate, Metric, Point, Row, Sharpness
from .settings import Settings

MOST_POINTS = 1500


def make_rows(
    outcomes: Sequence[Outcome], task: Task, metric: Metric, folds: Sequence[Fold]
) -> tuple[Row, ...]:
    """Rows, best first; those that failed at the end, in the order they were run."""
    ratio = len(folds[0].test.query) / len(folds[0].test.key)
    sign = 1 if metric.higher_is_better else -1
    sound = [outcome for outcome in outcomes if not outcome.error]
    # Of equal means the other metrics decide, then the order in which they were asked for: not the
    # time, so that a run repeats itself.
    order = [metric, *(other for other in task.metrics if other is not metric)]
    sound.sort(key=lambda outcome: [_rank(outcome, m) for m in order])
    best = next((o.scores[metric.name] for o in sound if not o.candidate.anchor), None)
    rows = []
    for outcome in [*sound, *(o for o in outcomes if o.error)]:
        ok = not outcome.error
        differences = (
            [sign * (a - b) for a, b in zip(outcome.scores[metric.name], best, strict=True)]
            if ok and best is not None
            else None
        )
        p = None if differences is None else p_value(differences, ratio)
        scores = {m.name: estimate(outcome.scores[m.name], ratio, m) for m in task.metrics if ok}
        rows.append(_row(outcome, scores, differences, p, ratio))
    return tuple(rows)


def _rank(outcome: Outcome, metric: Metric) -> float:
    """Smaller is better; without the digits in which equal sums may differ."""
    mean = float(np.mean(outcome.scores[metric.name]))
    return round(-mean if metric.higher_is_better else mean, 9)


def _row(
    outcome: Outcome,
    scores: dict[str, Estimate],
    differences: list[float] | None,
    p: float | None,
    ratio: float,
) -> Row:
    candidate, sharpness = outcome.candidate, _sharpness(outcome)
    caveats = list(candidate.caveats)
    if not outcome.error and candidate.option and not candidate.fixed:
        if sharpness is None:
            caveats.append(f"{candidate.option} made no difference and was left at its default")
        elif sharpness.on_border:
            caveats.append(f"the best {sharpness.option} may lie beyond the range tried")
    value = None if sharpness is None or sharpness.fixed else sharpness.value
    return Row(
        label=candidate.label,
        name=candidate.name,
        family=candidate.family,
        summary=candidate.summary,
        anchor=candidate.anchor,
        options=candidate.options(value),
        scores=scores,
        difference=None if differences is None else estimate(differences, ratio),
        p_value=p,
        tied=p is not None and (p >= LEVEL),
        sharpness=sharpness,
        seconds=_time(outcome),
        memory=outcome.memory,
        caveats=tuple(caveats),
        error=outcome.error,
    )


def _time(outcome: Outcome) -> float:
    return float(np.median(outcome.seconds)) if outcome.seconds else math.nan


def _sharpness(outcome: Outcome) -> Sharpness | None:
    candidate = outcome.candidate
    if candidate.fixed:
        value = candidate.options(None).get(candidate.option)
        if not isinstance(value, int | float):
            return None
        return Sharpness(candidate.option, float(value), (), (), on_border=False, fixed=True)
    chosen = [search.value for search in outcome.searches if search.value is not None]
    if not chosen:
        return None
    points: dict[float, list[float]] = {}
    for search in outcome.searches:
        for value, score in search.curve.items():
            points.setdefault(value, []).append(score)
    curve = tuple((v, float(np.mean(points[v])), len(points[v])) for v in sorted(points))
    return Sharpness(
        option=candidate.option,
        value=_typical(chosen, candidate.whole),
        splits=tuple(chosen),
        curve=curve,
        on_border=sum(search.on_border for search in outcome.searches) > len(chosen) / 2,
    )


def _typical(chosen: list[float], whole: bool) -> float:
    """The median on a logarithmic scale, as a value of the lattice that was searched."""
    if whole:
        return float(round(math.exp(float(np.median(np.log(chosen))))))
    index = round(STEPS * float(np.median(np.log10(chosen))))
    return float(f"{10 ** (index / STEPS):.4g}")


def find_errors(
    winner: Outcome, data: Checked, folds: Sequence[Fold], settings: Settings
) -> Errors:
    """Where the best mechanism goes wrong, in the plane of the two main components."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    plane = PCA(n_components=min(2, *data.vectors.shape), random_state=settings.seed)
    places = plane.fit_transform(StandardScaler().fit_transform(data.vectors))
    shares = [float(share) for share in plane.explained_variance_ratio_]
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(len(places))])
        shares.append(0.0)
    points = _class_points(winner, data, folds) if data.classes else _number_points(winner, folds)
    chosen = _thinned(points, settings.seed)
    return Errors(
        label=winner.candidate.label,
        confusion=_confusion(winner, data, folds) if data.classes else (),
        points=tuple(
            Point(
                float(places[row, 0]), float(places[row, 1]), truth, predicted, error,
                int(data.rows[row]),
            )
            for row, truth, predicted, error in chosen
        ),
        explained=(shares[0], shares[1]),
    )  # fmt: skip


_Found = tuple[int, str | float, str | float, float]


def _class_points(winner: Outcome, data: Checked, folds: Sequence[Fold]) -> list[_Found]:
    """Each tested sample with its class, what it was taken for, and how often it was wrong."""
    assert data.target is not None
    taken: dict[int, list[int]] = {}
    for fold, prediction in zip(folds, winner.predictions, strict=True):
        for row, guess in zip(fold.test_rows, prediction.argmax(axis=1), strict=True):
            taken.setdefault(int(row), []).append(int(guess))
    found: list[_Found] = []
    for row, guesses in sorted(taken.items()):
        truth = int(data.target[row])
        wrong = [guess for guess in guesses if guess != truth]
        shown = max(set(wrong), key=wrong.count) if wrong else truth
        share = len(wrong) / len(guesses)
        found.append((row, data.classes[truth], data.classes[shown], share))
    return found


def _number_points(winner: Outcome, folds: Sequence[Fold]) -> list[_Found]:
    """Each tested sample with its standardised target, prediction and mean absolute error.

    Of several targets, the first stands for all; the error is over all.
    """
    found: dict[int, _Found] = {}
    for fold, prediction in zip(folds, winner.predictions, strict=True):
        truth = fold.test.query_target
        errors = np.abs(truth - prediction).mean(axis=1)
        for index, row in enumerate(fold.test_rows):
            found[int(row)] = (
                int(row), float(truth[index, 0]), float(prediction[index, 0]), float(errors[index])
            )  # fmt: skip
    return [found[row] for row in sorted(found)]


def _thinned(points: list[_Found], seed: int) -> list[_Found]:
    """At most so many points, at random; of classes, those that were taken for another first."""
    if len(points) <= MOST_POINTS:
        return points
    order = np.random.default_rng(seed).permutation(len(points))
    wrong_first = sorted(order, key=lambda index: points[index][1] == points[index][2])
    return [points[index] for index in sorted(wrong_first[:MOST_POINTS])]


def _confusion(
    winner: Outcome, data: Checked, folds: Sequence[Fold]
) -> tuple[tuple[int, ...], ...]:
    from sklearn.metrics import confusion_matrix

    truth: Array = np.concatenate([fold.test.query_target for fold in folds])
    guess = np.concatenate([prediction.argmax(axis=1) for prediction in winner.predictions])
    counts = confusion_matrix(truth, guess, labels=np.arange(len(data.classes)))
    return tuple(tuple(int(count) for count in line) for line in counts)
