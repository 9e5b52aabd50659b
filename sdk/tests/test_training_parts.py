"""Schedules, curricula, miners, names in the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn import training
from polyattn.training import Stage, Stages
from polyattn_core.errors import ArgumentError, ShapeError, UnknownNameError

NAMES = {
    "annealing": {"cosine", "exponential", "linear", "step"},
    "curriculum": {"competence", "stages"},
    "loss": {"info-nce", "local-contrastive", "spectral", "triplet"},
    "miner": {"distance-weighted", "hard", "in-batch", "random", "semi-hard"},
    "optimiser": {"adam", "adamw", "natural-gradient", "riemannian-adam", "sgd"},
    "schedule": {"constant", "cosine", "linear-warm-up", "step"},
}


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("kind", training.KINDS)
def test_names(kind: str) -> None:
    assert set(pa.available(kind=kind, family="sdk")) == NAMES[kind]
    for name in NAMES[kind]:
        assert inspected(kind, name).__doc__


def inspected(kind: str, name: str) -> Any:
    import polyattn_registry

    return polyattn_registry.resolve(name, kind)


def test_make_refuses() -> None:
    with pytest.raises(UnknownNameError, match="'adamw'"):
        training.make("optimiser", "adam-w")
    with pytest.raises(ArgumentError, match="temperature"):
        training.make("loss", "info-nce", temprature=1)
    with pytest.raises(ArgumentError, match="optimiser"):
        training.make("optimizer", "adam")


def test_annealing() -> None:
    for name in NAMES["annealing"]:
        for start, end in ((1.0, 0.05), (0.05, 1.0)):
            anneal = training.make("annealing", name, start, end, steps=12)
            values = np.array([anneal(step) for step in range(15)])
            assert values[0] == pytest.approx(start)
            assert (values[12:] == end).all()
            assert (np.diff(values) * np.sign(end - start) >= 0).all()
    levels = training.make("annealing", "step", 1.0, 0.2, steps=8, levels=2)
    assert [levels(step) for step in (0, 3, 4, 7, 8)] == [1.0, 1.0, 0.6, 0.6, 0.2]


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "options", "match"),
    [
        ("schedule", "constant", (-1,), {}, "value"),
        ("schedule", "cosine", (1,), {"steps": 5, "warm_up": 5}, "warm_up"),
        ("schedule", "cosine", (1,), {"steps": 5, "least": 2}, "least"),
        ("schedule", "step", (1,), {"every": 0}, "every"),
        ("annealing", "exponential", (0, 1), {"steps": 4}, "start"),
        ("curriculum", "stages", ([],), {}, "stages"),
        ("curriculum", "competence", (), {"start": 0, "steps": 4}, "start"),
        ("miner", "semi-hard", (), {"margin": 0}, "margin"),
        ("miner", "distance-weighted", (), {"cutoff": 1.5}, "cutoff"),
        ("miner", "hard", (), {"count": 0}, "count"),
    ],
)
def test_refused_options(kind: str, name: str, arguments: Any, options: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        training.make(kind, name, *arguments, **options)
    with pytest.raises(ArgumentError, match="step"):
        training.Constant(1.0)(-1)


def test_stages() -> None:
    easy = Stage(name="easy", steps=3, share=0.2, temperature=0.5)
    hard = Stage(name="hard", steps=2, negatives=8)
    curriculum = Stages([easy, hard])
    assert [curriculum.at(step) for step in (0, 2, 3, 9)] == [easy, easy, hard, hard]
    assert [curriculum.progress(step) for step in (0, 1, 5, 9)] == [0, 0.2, 1, 1]
    difficulties = np.arange(50)[::-1]
    chosen = curriculum.choose(difficulties, 0, 8, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 8
    assert set(chosen.tolist()) <= set(range(40, 50))
    late = curriculum.choose(difficulties, 4, 50, np.random.default_rng(0))
    assert sorted(late.tolist()) == list(range(50))
    with pytest.raises(ArgumentError, match="at most 50"):
        curriculum.choose(difficulties, 4, 51, np.random.default_rng(0))
    with pytest.raises(ArgumentError, match="share"):
        Stage(name="none", steps=1, share=0)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_competence_is_the_formula_of_the_paper(power: float) -> None:
    curriculum = training.Competence(start=0.1, steps=40, power=power)
    for step in (0, 1, 17, 40, 90):
        paper = min(1, (step * (1 - 0.1**power) / 40 + 0.1**power) ** (1 / power))
        assert curriculum.share(step) == pytest.approx(paper, rel=1e-12)


QUERY, CANDIDATES = normal(6, 3), normal(40, 3, seed=1)
POSITIVE = np.random.default_rng(2).random((6, 40)) < 0.1
POSITIVE[:, 0] = True
DISTANCE = np.array([[np.sqrt(((q - c) ** 2).sum()) for c in CANDIDATES] for q in QUERY])


@pytest.mark.parametrize("name", sorted(NAMES["miner"]))
def test_miners(name: str) -> None:
    """Seeded; no positives; none twice; −1 only behind others; indices stand for one column."""
    make: Callable[..., Any] = lambda: training.make("miner", name, count=3)  # noqa: E731
    found = make()(QUERY, CANDIDATES, positive=POSITIVE)
    assert found.shape == (6, 3)
    np.testing.assert_array_equal(found, make()(QUERY, CANDIDATES, positive=POSITIVE))
    for row, own in zip(found, POSITIVE, strict=True):
        real = row[row >= 0].tolist()
        assert len(set(real)) == len(real)
        assert not own[real].any()
        assert (np.diff((row < 0).astype(int)) >= 0).all()
    alone = make()(QUERY, CANDIDATES[:3], positive=np.zeros(6, int))
    assert not (alone == 0).any()
    assert (alone[:, 2] == -1).all()


def test_random_goes_on_and_is_even() -> None:
    miner = training.RandomMiner(rng=3)
    draws = np.concatenate(
        [miner(QUERY, CANDIDATES[:5], positive=np.zeros(6, int)) for _ in range(1000)]
    )
    shares = np.bincount(draws.ravel(), minlength=5) / draws.size
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], 0.25, atol=0.03)


def test_hard_is_brute_force() -> None:
    found = training.HardMiner(count=4)(QUERY, CANDIDATES, positive=POSITIVE)
    for i in range(6):
        order = sorted(np.flatnonzero(~POSITIVE[i]), key=lambda j: DISTANCE[i, j])
        assert found[i].tolist() == order[:4]


def test_semi_hard_is_brute_force() -> None:
    found = training.SemiHardMiner(margin=0.5, count=40)(QUERY, CANDIDATES, positive=POSITIVE)
    for i in range(6):
        far = DISTANCE[i, POSITIVE[i]].max()
        fits = {j for j in range(40) if not POSITIVE[i, j] and far < DISTANCE[i, j] < far + 0.5}
        assert {j for j in found[i].tolist() if j >= 0} == fits
    none = POSITIVE.copy()
    none[2] = False
    with pytest.raises(ArgumentError, match="query 2"):
        training.SemiHardMiner()(QUERY, CANDIDATES, positive=none)


def test_distance_weights_are_those_of_the_paper() -> None:
    miner = training.DistanceWeightedMiner(cutoff=0.5, farthest=1.4, rng=1)
    d = np.array([0.1, 0.5, 0.9, 1.3, 1.5])
    q = np.maximum(d, 0.5) ** 6 * (1 - np.maximum(d, 0.5) ** 2 / 4) ** 2.5
    weights = np.exp(miner.log_weights(d, 8))
    np.testing.assert_allclose(weights[:4], 1 / q[:4], rtol=1e-12)
    assert weights[4] == 0
    # Drawn as often as weighted.
    angles = 2 * np.arcsin(d / 2)
    candidates = np.zeros((6, 8))
    candidates[:5, 0], candidates[:5, 1] = np.cos(angles), np.sin(angles)
    candidates[5, 0] = 1
    query = np.repeat(np.eye(8)[:1], 4000, 0)
    draws = miner(query, candidates, positive=np.full(4000, 5))
    shares = np.bincount(draws[:, 0], minlength=6) / 4000
    np.testing.assert_allclose(shares[:5], weights / weights.sum(), atol=0.03)


def test_in_batch_is_all_others() -> None:
    miner = training.InBatchMiner()
    found = miner(QUERY, QUERY, positive=np.arange(6))
    assert found.tolist() == [[j for j in range(6) if j != i] for i in range(6)]


def test_miners_refuse() -> None:
    miner = training.HardMiner()
    with pytest.raises(ShapeError, match="candidates"):
        miner(QUERY, CANDIDATES[:, :2], positive=np.zeros(6, int))
    with pytest.raises(ShapeError, match="positive"):
        miner(QUERY, CANDIDATES, positive=np.zeros(5, int))
    with pytest.raises(ArgumentError, match="from 0 to 39"):
        miner(QUERY, CANDIDATES, positive=np.full(6, 40))
