"""The method of a comparison, piece by piece, against independent implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polyattn.compare import _measure, load
from polyattn.compare._checks import check
from polyattn.compare._folds import make_folds
from polyattn.compare._inference import estimate, p_value
from polyattn.compare._smoothers import NearestNeighbours, NumpySoftmax
from polyattn.compare._tasks import ACCURACY, Classification, NotFiniteError, Regression
from polyattn.compare._tuning import search, search_grid
from polyattn.compare.settings import Settings

metrics = pytest.importorskip("sklearn.metrics")


def folds_of(name: str, **settings: Any) -> Any:
    chosen = Settings(**{"splits": 2, "dtype": "float64", **settings})
    return make_folds(check(load(name), chosen), chosen)


@pytest.fixture(scope="module")
def iris() -> Any:
    return folds_of("iris")[0].test


def direct(query: Any, key: Any, scale: float) -> Any:
    """Weights of soft-max attention, the plain way."""
    scores = np.exp(scale * query @ key.T)
    return scores / scores.sum(axis=1, keepdims=True)


# ---- scores -------------------------------------------------------------------------------------


def test_probabilities_and_scores_of_classes(iris: Any) -> None:
    task = Classification(3)
    weights = direct(iris.query, iris.key, 0.7)
    output = NumpySoftmax().at(0.7).smooth(iris.query, iris.key, task.values(iris))
    one_hot = iris.key_target[:, None] == np.arange(3)
    assert np.allclose(output, weights @ one_hot)

    found = task.predict(output, iris)
    n = len(iris.key)
    assert np.allclose(found, (n * (weights @ one_hot) + one_hot.mean(axis=0)) / (n + 1))
    assert np.allclose(found.sum(axis=1), 1)

    truth = iris.query_target
    accuracy = metrics.accuracy_score(truth, found.argmax(axis=1))
    assert task.score("accuracy", found, iris) == pytest.approx(accuracy)
    log_loss = metrics.log_loss(truth, found, labels=[0, 1, 2])
    assert task.score("log-loss", found, iris) == pytest.approx(log_loss)
    relevant = truth[:, None] == iris.key_target
    ndcg = np.mean([metrics.ndcg_score([r], [w], k=10) for r, w in zip(relevant, weights)])  # noqa: B905
    assert task.ranking_score(weights, iris) == pytest.approx(ndcg)


def test_weights_below_zero_and_rows_without_weight(iris: Any) -> None:
    task = Classification(3)
    output = np.zeros((len(iris.query), 3))
    output[0] = (-5, 1, 3)
    found = task.predict(output, iris)
    n, prior = len(iris.key), np.bincount(iris.key_target) / len(iris.key)
    assert np.allclose(found[0], (n * np.array([0, 0.25, 0.75]) + prior) / (n + 1))
    assert np.allclose(found[1:], prior)


def test_scores_of_numbers() -> None:
    part = folds_of("diabetes")[0].test
    task = Regression()
    assert part.key_target.mean() == pytest.approx(0)
    assert part.key_target.std() == pytest.approx(1)
    values = task.values(part)
    weights = direct(part.query, part.key, 0.3)
    # Weights of any sum: the output is divided by it.
    found = task.predict(5 * weights @ values, part)
    assert np.allclose(found, weights @ part.key_target)
    r2 = metrics.r2_score(part.query_target, found)
    assert task.score("r2", found, part) == pytest.approx(r2)
    mae = metrics.mean_absolute_error(part.query_target, found)
    assert task.score("mae", found, part) == pytest.approx(mae)
    nothing = task.predict(np.zeros((len(part.query), 2)), part)
    assert np.allclose(nothing, 0)


def test_what_is_not_finite_is_refused(iris: Any) -> None:
    output = np.ones((len(iris.query), 3))
    output[3, 1] = np.nan
    with pytest.raises(NotFiniteError, match="1 of 90 outputs are not finite"):
        Classification(3).predict(output, iris)


def test_what_sharpness_is_tuned_for(iris: Any) -> None:
    task = Classification(3)
    output = NumpySoftmax().at(1.0).smooth(iris.query, iris.key, task.values(iris))
    found = task.predict(output, iris)
    accuracy, log_loss = (task.score(m, found, iris) for m in ("accuracy", "log-loss"))
    loss, shown = task.tuning("accuracy", found, iris)
    assert loss == pytest.approx(1 - accuracy + 1e-3 * log_loss)
    assert shown == accuracy
    for metric in ("log-loss", "ndcg"):
        assert task.tuning(metric, found, iris) == (log_loss, log_loss)


# ---- anchors ------------------------------------------------------------------------------------


def test_nearest_neighbours_are_those_of_scikit_learn(iris: Any) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    task, anchor = Classification(3), NearestNeighbours().at(4)
    expected = neighbors.KNeighborsClassifier(4).fit(iris.key, iris.key_target)
    output = anchor.smooth(iris.query, iris.key, task.values(iris))
    assert np.allclose(output, expected.predict_proba(iris.query))
    nearest = anchor.weights(iris.query, iris.key).argmax(axis=1)
    distances = np.linalg.norm(iris.query[:, None] - iris.key, axis=2)
    assert np.allclose(distances[np.arange(30), nearest], distances.min(axis=1))


def test_more_neighbours_than_keys_are_all_of_them() -> None:
    key = np.arange(6.0).reshape(3, 2)
    output = NearestNeighbours().at(50).smooth(key[:1], key, np.array([[1.0], [2.0], [6.0]]))
    assert output == pytest.approx(3)


# ---- splits -------------------------------------------------------------------------------------


def test_splits_are_disjoint_stratified_and_seeded() -> None:
    chosen = Settings(splits=3, test_size=0.3)
    data = check(load("iris"), chosen)
    folds = make_folds(data, chosen)
    assert len(folds) == 3
    for fold in folds:
        assert len(fold.test_rows) == 45
        assert np.bincount(data.target[fold.test_rows]).tolist() == [15, 15, 15]
        assert len(fold.validation) == 4, "one part would have 26 vectors"
        for part in fold.validation:
            assert len(part.query) + len(part.key) == len(fold.test.key)
    again = make_folds(data, chosen)
    other = make_folds(data, Settings(splits=3, test_size=0.3, seed=1))
    assert np.array_equal(folds[0].test_rows, again[0].test_rows)
    assert not np.array_equal(folds[0].test_rows, folds[1].test_rows)
    assert not np.array_equal(folds[0].test_rows, other[0].test_rows)


def test_scaling_is_fitted_on_training_vectors() -> None:
    part = folds_of("wine", scale="standard")[0].test
    assert np.allclose(part.key.mean(axis=0), 0)
    assert np.allclose(part.key.std(axis=0), 1)
    assert not np.allclose(part.query.mean(axis=0), 0)
    unit = folds_of("wine", scale="unit")[0].test
    assert np.allclose(np.linalg.norm(unit.query, axis=1), 1)
    fold = folds_of("wine", scale="none")[0]
    assert np.array_equal(fold.test.query, load("wine").vectors[fold.test_rows])


def test_hidden_coordinates_are_values_and_nothing_else() -> None:
    chosen = Settings(splits=2, task="reconstruction", scale="none", dtype="float64")
    data = check(load("wine"), chosen)
    first, second = make_folds(data, chosen)
    assert len(first.hidden) == 3, "a quarter of 13"
    assert not np.array_equal(first.hidden, second.hidden)
    seen = np.delete(np.arange(13), first.hidden)
    assert np.array_equal(first.test.query, data.vectors[first.test_rows][:, seen])
    truth = data.vectors[first.test_rows][:, first.hidden]
    ratio = (truth - truth[0])[1:] / (first.test.query_target - first.test.query_target[0])[1:]
    spread = np.nanmax(ratio, axis=0) - np.nanmin(ratio, axis=0)
    assert np.allclose(spread, 0), "z-scores of the hidden coordinates"


# ---- the search for sharpness -------------------------------------------------------------------


def smooth_step(centre: float) -> Any:
    """Predictions that change around a value, as those of a soft-max do."""
    return lambda s: np.array([1 / (1 + centre / s)])


@pytest.mark.parametrize(
    ("best", "unit"), [(3e-9, 1e3), (0.02, 1.0), (1.0, 1e-9), (47.0, 11.0), (6e20, 1e-10)]
)
def test_the_best_value_is_found_in_any_unit(best: float, unit: float) -> None:
    tried: list[float] = []

    def loss(value: float) -> float:
        tried.append(value)
        return 1 - math.exp(-(math.log10(value / best) ** 2))

    found = search(loss, smooth_step(best), unit=unit)
    assert found.value == pytest.approx(best, rel=0.16), "to half an eighth of a decade"
    assert not found.on_border
    assert len(tried) == len(set(tried)) <= 20


def test_a_best_value_beyond_the_range_is_gone_after() -> None:
    found = search(lambda s: abs(math.log10(s / 1e5)), smooth_step(1.0))
    assert found.value == pytest.approx(1e5, rel=0.16)
    assert not found.on_border


def test_a_loss_without_a_minimum_is_on_the_border() -> None:
    found = search(lambda s: -math.log10(s), smooth_step(1.0))
    assert found.on_border
    refused = search(lambda s: -math.log10(s) if s < 20 else math.inf, smooth_step(1.0))
    assert refused.value is not None
    assert 10 <= refused.value < 20
    assert max(refused.curve) < 20


def test_of_equal_losses_the_middle_is_taken() -> None:
    found = search(lambda _: 0.25, smooth_step(1.0))
    assert found.value is not None
    assert 0.1 < found.value < 10
    assert not found.on_border


def test_what_makes_no_difference_is_not_tuned() -> None:
    found = search(lambda _: 0.25, lambda _: np.ones(3))
    assert not found.reacts
    assert found.value is None
    assert search(lambda _: math.inf, lambda _: None).value is None


def test_rounding_is_no_reaction() -> None:
    def underflowing(value: float) -> Any:
        return np.ones(3) if value > 1e-12 else np.zeros(3)

    assert not search(lambda _: 0.25, underflowing).reacts
    assert search(lambda _: 0.25, underflowing, unit=1e6).reacts


def test_whole_numbers() -> None:
    found = search(lambda k: abs(math.log(k / 12)), smooth_step(12.0), whole=True)
    assert found.value == 13 or found.value == 12
    assert all(value == round(value) >= 1 for value in found.curve)


def test_a_given_grid() -> None:
    found = search_grid(lambda k: abs(k - 7), (1, 2, 5, 10))
    assert (found.value, found.on_border) == (5, False)
    assert search_grid(lambda k: -k, (1, 2, 5)).on_border
    assert not search_grid(lambda k: k, (1, 2, 5)).on_border


# ---- uncertainty --------------------------------------------------------------------------------


def test_intervals_are_corrected_for_overlap() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.91, 0.94, 0.9, 0.95, 0.93]
    found = estimate(values, 0.25)
    error = np.std(values, ddof=1) * math.sqrt(1 / 5 + 0.25)
    assert found.standard_error == pytest.approx(error)
    low, high = stats.t.interval(0.95, 4, np.mean(values), error)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.splits == tuple(values)
    assert estimate([0.99, 1.0, 1.0, 1.0], 0.25, ACCURACY).high == 1


def test_p_values_are_those_of_the_t_test_without_overlap() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.01, 0.03, -0.01, 0.02]
    assert p_value(values, 0.0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(values, 0.25) > p_value(values, 0.0)
    assert p_value([0.0, 0.0], 0.25) == 1
    assert p_value([0.1, 0.1], 0.25) == 0


# ---- time and memory ----------------------------------------------------------------------------


def test_memory_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        np.ones(20_000_000, np.uint8).sum()

    assert 19e6 < _measure.peak_memory(call) < 30e6
    monkeypatch.setattr(_measure, "_resident", lambda: None)
    assert _measure.memory_method() == _measure.TRACED
    assert 20e6 <= _measure.peak_memory(call) < 21e6


def test_slow_calls_are_timed_less_often() -> None:
    calls: list[int] = []
    assert len(_measure.seconds(lambda: calls.append(1))) == len(calls) == 5
    assert len(_measure.seconds(lambda: sum(range(200_000)), longest=0.0)) == 1
