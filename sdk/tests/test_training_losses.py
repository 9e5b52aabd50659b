"""Losses: closed forms, gradients against finite differences, batches, options, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn.training.losses import InfoNCE, LocalContrastive, Spectral, Triplet
from polyattn_core.errors import ArgumentError, DTypeError, ShapeError

Array = Any


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def neighbours(n: int, *lead: int) -> Array:
    return np.random.default_rng(3).random((*lead, n, n)) < 0.3


CASES: dict[str, tuple[Callable[..., Any], dict[str, Array], dict[str, Array]]] = {
    "in-batch": (
        InfoNCE(temperature=0.3),
        {"query": normal(5, 4), "positive": normal(5, 4, seed=1)},
        {},
    ),
    "in-batch, products": (
        InfoNCE(temperature=2.0, normalise=False),
        {"query": normal(2, 5, 4), "positive": normal(2, 5, 4, seed=1)},
        {},
    ),
    "shared negatives": (
        InfoNCE(),
        {
            "query": normal(2, 3, 4),
            "positive": normal(2, 3, 4, seed=1),
            "negatives": normal(2, 7, 4, seed=2),
        },
        {},
    ),
    "own negatives": (
        InfoNCE(normalise=False),
        {
            "query": normal(3, 4),
            "positive": normal(3, 4, seed=1),
            "negatives": normal(3, 2, 4, seed=2),
        },
        {},
    ),
    "one row": (InfoNCE(), {"query": normal(1, 4), "positive": normal(1, 4, seed=1)}, {}),
    **{
        f"triplet {options}": (
            Triplet(**options),
            {
                name: normal(2, 9, 4, seed=i)
                for i, name in enumerate(("anchor", "positive", "negative"))
            },
            {},
        )
        for options in (
            {},
            {"squared": True},
            {"swap": True},
            {"margin": 0.1, "squared": True, "swap": True},
        )
    },
    "local": (
        LocalContrastive(margin=2.5),
        {"points": normal(2, 7, 3)},
        {"neighbours": neighbours(7, 2)},
    ),
    "log-determinant": (Spectral(), {"points": normal(2, 9, 4)}, {}),
    "log-determinant, flat": (Spectral(epsilon=0.1), {"points": normal(3, 5)}, {}),
    "spread": (Spectral(form="spread", epsilon=0.01), {"points": normal(2, 9, 4)}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences(case: str) -> None:
    loss, inputs, fixed = CASES[case]
    before = {name: array.copy() for name, array in inputs.items()}
    _, gradients = loss(**inputs, **fixed)
    assert list(gradients) == list(inputs)
    for name, array in inputs.items():
        numeric = np.empty_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[place] += step
                ends.append(loss(**{**inputs, name: moved}, **fixed)[0])
            numeric[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(gradients[name], numeric, rtol=2e-6, atol=2e-8, err_msg=name)
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("case", CASES)
def test_float32_is_close_to_float64(case: str) -> None:
    loss, inputs, fixed = CASES[case]
    value, gradients = loss(**inputs, **fixed)
    short, found = loss(**{k: a.astype(np.float32) for k, a in inputs.items()}, **fixed)
    assert short == pytest.approx(value, rel=2e-5, abs=1e-6)
    for name, gradient in gradients.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", ["in-batch, products", "shared negatives", "local", "spread"])
def test_a_batch_is_the_mean_of_its_parts(case: str) -> None:
    loss, inputs, fixed = CASES[case]
    whole = loss(**inputs, **fixed)[0]
    parts = [loss(**{k: a[i] for k, a in (inputs | fixed).items()})[0] for i in range(2)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-12)


def test_tiles_join() -> None:
    """More queries than a tile holds, in one formula."""
    query, positive = normal(700, 8), normal(700, 8, seed=1)
    loss = InfoNCE(temperature=0.5, normalise=False)
    logits = query @ positive.T / 0.5
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    value, gradients = loss(query, positive)
    assert value == pytest.approx(-np.log(np.diag(shares)).mean(), rel=1e-12)
    slopes = (shares - np.eye(700)) / 700 / 0.5
    np.testing.assert_allclose(gradients["query"], slopes @ positive, atol=1e-14)
    np.testing.assert_allclose(gradients["positive"], slopes.T @ query, atol=1e-14)


def test_temperature_of_a_call() -> None:
    query, positive = normal(5, 4), normal(5, 4, seed=1)
    assert (
        InfoNCE()(query, positive, temperature=0.5)[0]
        == InfoNCE(temperature=0.5)(query, positive)[0]
    )


def test_extreme_logits_stay_finite() -> None:
    query = 1e4 * normal(5, 4)
    value, gradients = InfoNCE(normalise=False, temperature=0.01)(query, query[::-1].copy())
    assert np.isfinite(value)
    assert np.isfinite(gradients["query"]).all()


def test_points_that_coincide() -> None:
    same = np.ones((4, 3))
    value, gradients = LocalContrastive(margin=2.0)(same, np.zeros((4, 4), bool))
    assert value == 2.0
    assert not gradients["points"].any()
    value, gradients = Triplet(margin=0.5)(same, same, same)
    assert value == 0.5
    assert not any(g.any() for g in gradients.values())
    assert np.isfinite(Spectral()(same)[1]["points"]).all()


def test_spread_knows_shape_not_size() -> None:
    x = normal(50, 3) * [1, 2, 5]
    spread = Spectral(form="spread", epsilon=1e-12)
    assert spread(x)[0] == pytest.approx(spread(10 * x)[0], rel=1e-6)
    rotation, _ = np.linalg.qr(normal(60, 3))
    rotation -= rotation.mean(0)
    round_cloud, _ = np.linalg.qr(rotation)
    assert spread(round_cloud)[0] < 1e-12


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "temperature": (lambda: InfoNCE(temperature=0), ArgumentError, "temperature.*above 0"),
    "normalise": (lambda: InfoNCE(normalise="no"), ArgumentError, "normalise"),  # type: ignore[arg-type]
    "margin": (lambda: Triplet(margin=-1), ArgumentError, "margin.*at least 0"),
    "form": (lambda: Spectral(form="log"), ArgumentError, "form.*'spread'"),
    "epsilon": (lambda: Spectral(epsilon=0), ArgumentError, "epsilon"),
    "shapes": (lambda: InfoNCE()(normal(3, 4), normal(2, 4)), ShapeError, "positive"),
    "negatives": (
        lambda: InfoNCE()(normal(3, 4), normal(3, 4), normal(2, 5)),
        ShapeError,
        "negatives",
    ),
    "zeros": (lambda: InfoNCE()(np.zeros((3, 4)), normal(3, 4)), ArgumentError, "query.*direction"),
    "NaN": (
        lambda: Triplet()(normal(3) * np.nan, normal(3), normal(3)),
        ArgumentError,
        "anchor.*finite",
    ),
    "dtypes": (
        lambda: InfoNCE()(normal(3, 4), normal(3, 4, dtype=np.float32)),
        DTypeError,
        "float32",
    ),
    "neighbours": (lambda: LocalContrastive()(normal(3, 4), np.eye(3)), ArgumentError, "booleans"),
    "neighbours' shape": (
        lambda: LocalContrastive()(normal(3, 4), np.eye(2) > 0),
        ShapeError,
        "neighbours",
    ),
    "one point": (lambda: Spectral()(normal(1, 4)), ShapeError, "at least 2 points"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        call()
