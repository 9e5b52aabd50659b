"""The report: directions, thresholds, health, advice, reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.neighbors import NearestNeighbors

import polyattn as pa
from polyattn_core import diagnostics, resolver
from polyattn_core.errors import AmbiguousNameError, ArgumentError, ConfigError, RegistryError
from polyattn_report import (
    Action,
    AttentionRecommendation,
    MetricType,
    Monitor,
    ReportBuilder,
    ReportConfig,
    Status,
    Thresholds,
    analyze,
)
from polyattn_report.analysis import attention_entropy, neighbour_recall

OK, WATCH, WARNING, CRITICAL = Status


def one(metric: str, value: float, keys: int | None = None) -> Status:
    builder = ReportBuilder().with_metric(metric, value)
    if keys is not None:
        builder.with_keys(keys)
    return builder.build()[metric].status()


@pytest.mark.parametrize(
    ("metric", "cases"),
    [
        ("ot-distance", [(0, OK), (0.3, OK), (0.31, WARNING), (0.7, WARNING), (0.71, CRITICAL)]),
        (
            "topology-coherence",
            [(1, OK), (0.5, OK), (0.49, WATCH), (0.3, WATCH), (0.29, WARNING), (0.1, WARNING),
             (0.09, CRITICAL), (0, CRITICAL)],
        ),
        ("ib-kl", [(0, OK), (0.2, OK), (0.21, WATCH), (0.5, WATCH), (0.51, WARNING),
                   (1.0, WARNING), (1.01, CRITICAL)]),
        ("diffusion-energy", [(0, OK), (1, OK), (1.5, WATCH), (2, WATCH), (2.1, WARNING),
                              (5, WARNING), (5.1, CRITICAL)]),
        ("attention-entropy", [(1, OK), (4, OK), (4.1, WATCH), (0.99, WATCH), (0.5, WATCH),
                               (0.49, WARNING), (0.1, WARNING), (0.09, CRITICAL)]),
    ],
)  # fmt: skip
def test_statuses(metric: str, cases: list[tuple[float, Status]]) -> None:
    assert [one(metric, value) for value, _ in cases] == [status for _, status in cases]
    assert one(metric, math.nan) is CRITICAL
    assert one(metric, math.inf) is CRITICAL


def test_few_keys_are_not_unhealthy() -> None:
    """Uniform weights over n keys have the greatest entropy there is, ln n."""
    for keys in (2, 3, 5, 50):
        assert one("attention-entropy", math.log(keys), keys) is OK
    assert one("attention-entropy", 0.3, 3) is OK
    assert one("attention-entropy", 0.3) is WARNING


def test_the_example_of_old() -> None:
    report = (
        ReportBuilder(ReportConfig())
        .with_ot_distance(0.15)
        .with_topology_coherence(0.82)
        .with_ib_kl(0.05)
        .with_diffusion_energy(0.3)
        .with_attention_entropy(2.1)
        .build()
    )
    assert report.health_score == 1.0
    assert report.recommendation is AttentionRecommendation.STANDARD
    assert report.action is Action.STABLE
    assert [metric.metric_type for metric in report.metrics] == list(MetricType)
    assert {metric.status() for metric in report.metrics} == {OK}
    assert report.reasons == ("every metric that was looked at is in its healthy range",)


def test_health_is_the_mean_of_what_was_supplied() -> None:
    report = ReportBuilder().with_topology_coherence(0.4).with_ib_kl(0.6).build()
    assert report.health_score == (0.75 + 0.5) / 2
    assert ReportBuilder().with_ib_kl(2).build().health_score == 0


@pytest.mark.parametrize(
    ("values", "recommendation", "action"),
    [
        ({"topology-coherence": 0.2}, "standard", "cautious"),
        ({"topology-coherence": 0.05}, "standard", "freeze"),
        ({"topology-coherence": 0.4}, "standard", "stable"),
        ({"diffusion-energy": 3}, "diffusion", "cautious"),
        ({"ot-distance": 0.5}, "geometric", "cautious"),
        ({"attention-entropy": 0.3}, "sparse", "raise-temperature"),
        ({"attention-entropy": 5}, "standard", "lower-temperature"),
        ({"ib-kl": 0.7}, "standard", "regularise"),
        ({"ot-distance": 0.9, "topology-coherence": 0.2}, "geometric", "cautious"),
        ({"ot-distance": 0.9, "topology-coherence": 0.05}, "geometric", "freeze"),
        ({"ot-distance": 0.9, "diffusion-energy": 6}, "diffusion", "cautious"),
        ({"ot-distance": 0.5, "attention-entropy": 0.05}, "sparse", "raise-temperature"),
    ],
)
def test_advice(values: dict[str, float], recommendation: str, action: str) -> None:
    builder = ReportBuilder()
    for metric, value in values.items():
        builder.with_metric(metric, value)
    report = builder.build()
    assert (report.recommendation, report.action) == (recommendation, action)


@pytest.mark.parametrize(
    ("coherence", "recall", "recommendation"),
    [
        (0.6, 0.89, "geometric"),
        (0.59, 0.2, "standard"),
        (0.95, 0.9, "standard"),
        (0.95, None, "standard"),
        (None, 0.2, "standard"),
    ],
)
def test_neighbours_that_dot_products_miss(
    coherence: float | None, recall: float | None, recommendation: str
) -> None:
    builder = ReportBuilder().with_ib_kl(0.05)
    if coherence is not None:
        builder.with_topology_coherence(coherence)
    if recall is not None:
        builder.with_neighbour_recall(recall)
    report = builder.build()
    assert report.recommendation == recommendation
    assert report.neighbour_recall == recall
    assert report.action is Action.STABLE
    assert any("distances suit better" in why for why in report.reasons) == (
        recommendation == "geometric"
    )


@pytest.mark.parametrize("shape", [(40, 3), (2, 3, 70, 8), (300, 4)])
def test_recall_against_scikit_learn(shape: tuple[int, ...]) -> None:
    query, key = np.random.default_rng(5).standard_normal((2, *shape))
    found = []
    for q, k in zip(query.reshape(-1, *shape[-2:]), key.reshape(-1, *shape[-2:]), strict=True):
        near = NearestNeighbors(n_neighbors=8).fit(k).kneighbors(q, return_distance=False)
        best = np.argsort(-(q @ k.T), axis=-1)[:, :8]
        found += [len(set(a) & set(b)) / 8 for a, b in zip(near, best, strict=True)]
    assert neighbour_recall(query, key, sample=10**6) == pytest.approx(np.mean(found))
    drawn = neighbour_recall(query, key, sample=60, seed=2)
    assert abs(drawn - np.mean(found)) < 5 * np.std(found) / math.sqrt(60)


def test_recall_of_shared_keys_and_of_copies() -> None:
    rng = np.random.default_rng(6)
    query, key = rng.standard_normal((2, 4, 50, 6)), rng.standard_normal((2, 2, 50, 6))
    repeated = np.repeat(key, 2, axis=1)
    assert neighbour_recall(query, key) == neighbour_recall(query, repeated)
    entropies = [attention_entropy(query, k, sample=400) for k in (key, repeated)]
    assert entropies[0] == entropies[1]
    unit = query / np.linalg.norm(query, axis=-1, keepdims=True)
    copies = np.tile(unit, (1, 1, 9, 1))
    assert neighbour_recall(copies, copies) == 1
    assert neighbour_recall(rng.standard_normal((3, 2)), rng.standard_normal((3, 2))) <= 1


def test_reasons_are_plain_and_the_worst_first() -> None:
    report = ReportBuilder().with_ot_distance(0.4).with_topology_coherence(0.05).build()
    assert report.reasons == (
        "topology-coherence is 0.05, below 0.1: neighbouring keys hang together little",
        "ot-distance is 0.4, above 0.3: queries and keys are distributed differently",
    )
    assert "close to a plain mean" in ReportBuilder().with_attention_entropy(5).build().reasons[0]
    assert "broken" in ReportBuilder().with_ib_kl(math.nan).build().reasons[0]


def test_own_thresholds() -> None:
    limits = Thresholds(0, 0.1, 0.1, 0.2)
    builder = ReportBuilder(thresholds={MetricType.OT_DISTANCE: limits}).with_ot_distance(0.15)
    assert builder.build()["ot-distance"].status() is WARNING
    with pytest.raises(ArgumentError, match="low ≤ high, and warning and critical beyond"):
        Thresholds(0, 1, 0.5, 0.7)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ReportBuilder().build(), "metrics: got none; expected at least one"),
        (lambda: ReportBuilder().with_ib_kl(-1), "ib-kl: got -1; expected a number that is not"),
        (lambda: ReportBuilder().with_ib_kl("x"), "ib-kl: got x; expected a number"),
        (lambda: ReportBuilder().with_metric("speed", 1), "expected one of ot-distance, topol"),
        (lambda: ReportBuilder().with_keys(0), "count: got 0"),
        (lambda: ReportBuilder().with_neighbour_recall(1.1), "neighbour_recall: got 1.1; expected"),
        (lambda: ReportBuilder().with_neighbour_recall("x"), "neighbour_recall: got x"),
        (lambda: Monitor(0), "window: got 0"),
        (lambda: Monitor().report(), "metrics: got none"),
        (lambda: analyze(np.ones(3)), "query: got .3,."),
        (lambda: analyze(np.ones((3, 2)), np.ones((3, 4))), "key: got"),
        (lambda: analyze(np.ones((3, 2)), np.ones((3, 2)), np.ones((4, 2))), "value: got"),
    ],
)  # fmt: skip
def test_refusals(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


def test_configuration_is_checked() -> None:
    with pytest.raises((ConfigError, ValueError), match="sample"):
        ReportConfig(sample=1)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 70, 8), (300, 4)])
def test_entropy_against_scipy(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    query, key = rng.standard_normal((2, *shape)) * 3
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(shape[-1]), axis=-1)
    exact = entropy(weights, axis=-1).mean()
    found = attention_entropy(query, key, sample=10**6)
    assert found == pytest.approx(exact, rel=1e-12)
    deviation = entropy(weights, axis=-1).std()
    drawn = attention_entropy(query, key, sample=100, seed=1)
    assert abs(drawn - exact) < 5 * deviation / math.sqrt(min(100, math.prod(shape[:-1])))


def test_analysis_measures_what_is_installed() -> None:
    x = np.random.default_rng(0).standard_normal((2, 60, 8)).astype(np.float32)
    before = x.copy()
    report = analyze(x)
    offered = set(pa.available(kind="metric"))
    named = {metric.metric_type.value for metric in report.metrics}
    assert named == offered & set(MetricType)
    assert named | set(report.missing) == set(MetricType)
    np.testing.assert_array_equal(x, before)
    assert analyze(x) == report
    given = ReportBuilder().with_attention_entropy(0.01).analyze_keys(x).build()
    assert given["attention-entropy"].value == 0.01


@pytest.fixture
def without_families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POLYATTN_DISABLE_PLUGINS", "transport,topology,diffusion")
    pa.refresh()
    yield
    monkeypatch.undo()
    pa.refresh()


@pytest.mark.usefixtures("without_families")
def test_what_is_missing_is_said() -> None:
    report = analyze(np.random.default_rng(0).standard_normal((60, 8)))
    assert report.missing["ot-distance"] == "not installed: pip install polyattn-transport"
    assert json.loads(json.dumps(report.to_dict()))["missing"] == dict(report.missing)


def test_what_cannot_be_found_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((60, 8))
    registry = resolver.current()

    class Broken:
        def resolve(self, name: str, kind: str) -> Any:
            if name == "ib-kl":
                raise AmbiguousNameError(kind, name, ("a/ib-kl", "b/ib-kl"))
            return registry.resolve(name, kind)

    monkeypatch.setattr(resolver, "_resolver", Broken())
    assert "several plugins provide a metric called 'ib-kl'" in analyze(x).missing["ib-kl"]
    monkeypatch.setattr(resolver, "_resolver", None)
    with pytest.raises(RegistryError, match="import polyattn"):
        analyze(x)


def test_monitor_follows_the_bus() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 40, 16))
    flash = pa.create("flash", dim=16, heads=2)
    seen = flash.observe(*(x.reshape(2, 40, 2, 8).swapaxes(1, 2),) * 3, "entropy").entropy
    with Monitor() as monitor:
        flash(x)
        diagnostics.publish(diagnostics.MetricMeasured(metric="ib-kl", value=0.1))
        diagnostics.publish(diagnostics.MetricMeasured(metric="ib-kl", value=0.3))
        diagnostics.publish(diagnostics.MetricMeasured(metric="somebody-elses", value=3))
        diagnostics.publish(
            diagnostics.ModeChanged(name="x", before="stable", after="freeze", coherence=0.05)
        )
        with pytest.raises(ArgumentError, match="one that does not"):
            monitor.__enter__()
    flash(x)
    report = monitor.report()
    assert monitor.calls == 1
    assert report["attention-entropy"].value == pytest.approx(seen.mean())
    assert report["ib-kl"].value == pytest.approx(0.2)
    assert report.action is Action.FREEZE
    assert not diagnostics.wanted(diagnostics.AttentionComputed)


def test_looking_at_a_report() -> None:
    report = ReportBuilder().with_ib_kl(0.6).build()
    assert str(report).splitlines()[0] == (
        "health 0.50, recommendation standard, action regularise"
    )
    with pytest.raises(KeyError):
        report["ot-distance"]
