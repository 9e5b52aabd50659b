"""`auto` and `recommend`: a choice by data, kept, shown, reset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import polyattn as pa
from polyattn_core.errors import ArgumentError, RegistryError
from polyattn_report import AttentionRecommendation, ReportBuilder, recommend
from polyattn_report.choice import CANDIDATES, choose


def clustered(sharp: float = 40.0) -> np.ndarray:
    """Vectors so long that each query attends to itself alone."""
    return sharp * np.random.default_rng(0).standard_normal((60, 8))


def test_auto_becomes_what_the_report_of_its_first_call_says() -> None:
    auto = pa.create("auto", dim=8, heads=2, causal=True)
    with pytest.raises(ArgumentError, match="choice: got none yet; expected a first call"):
        auto.choice  # noqa: B018
    x = np.random.default_rng(1).standard_normal((50, 8))
    out, pullback = auto.vjp(x)
    name = auto.choice.mechanism
    same = pa.create(name, dim=8, heads=2, causal=True)
    expected, pull = same.vjp(x)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(pullback(out).query, pull(out).query)
    auto(clustered())
    assert auto.choice.mechanism == name  # kept
    auto.reset()
    auto(clustered())
    assert auto.choice.report.recommendation in AttentionRecommendation
    assert auto.choice.report["attention-entropy"].status() != "OK"
    assert pickle.loads(pickle.dumps(auto)).choice == auto.choice


def test_collapsed_weights_call_for_sparse_attention() -> None:
    report = ReportBuilder().with_attention_entropy(0.01).build()
    assert choose(report).mechanism == "top-k"


@pytest.mark.parametrize("advice", AttentionRecommendation)
def test_candidates(advice: AttentionRecommendation) -> None:
    metric, value = {
        "standard": ("ib-kl", 0.0),
        "sparse": ("attention-entropy", 0.0),
        "geometric": ("ot-distance", 2.0),
        "diffusion": ("diffusion-energy", 9.0),
    }[advice]
    report = ReportBuilder().with_metric(metric, value).build()
    wanted = CANDIDATES[advice]
    assert choose(report, ("cosine", wanted[-1])).mechanism == wanted[-1]
    assert choose(report, ("cosine",)).mechanism == "cosine"
    assert set(wanted) <= set(pa.available()) | {"diffusion", "hyperbolic"}


def test_nothing_fitting_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ReportBuilder().with_diffusion_energy(9).build()
    monkeypatch.setenv("POLYATTN_DISABLE_PLUGINS", "diffusion,sparse,standard")
    pa.refresh()
    try:
        with pytest.raises(RegistryError, match="pip install polyattn-diffusion"):
            choose(report)
    finally:
        monkeypatch.undo()
        pa.refresh()


def test_a_choice_made_elsewhere() -> None:
    x = clustered(1.0)
    choice = recommend(x)
    assert choice.reasons[0].startswith(f"{choice.mechanism}: ")
    assert choice.to_dict()["mechanism"] == choice.mechanism
    auto = pa.create("auto", dim=8)
    auto.settle(choice)
    np.testing.assert_array_equal(auto(x), choice.create(dim=8)(x))


def test_hidden_keys_do_not_decide() -> None:
    x = np.random.default_rng(1).standard_normal((50, 8))
    broken = x.copy()
    broken[40:] = np.nan
    auto = pa.create("auto", dim=8, candidates=("flash",))
    auto(x, broken, broken, mask=pa.masks.Padding((40,)))
    assert auto.choice.report["attention-entropy"].status() != "CRITICAL"
