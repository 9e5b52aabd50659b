"""The options that all mechanisms of the family share, each against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_core.spec import resolve
from polyattn_standard.plugin import MECHANISMS

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SPECS = {spec.name: spec for spec in MECHANISMS}
APART = (  # have tests of their own
    "multi-head", "additive", "differential", "talking-heads", "hopfield", "stick-breaking",
    "latent",
)  # fmt: skip
NAMES = [name for name in SPECS if name not in APART]
each = pytest.mark.parametrize("name", NAMES)

BY_DISTANCE = ("l2", "gaussian")


@each
def test_defaults(create: Create, arrays: Arrays, plain: SimpleNamespace, name: str) -> None:
    query, key, value = arrays()
    expected = plain.attend(name, plain.scores(name, query, key), value)
    output = create(name, dim=12, heads=3).attend(query, key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


@each
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 7), (7, 3)])
def test_causal(
    create: Create, arrays: Arrays, plain: SimpleNamespace, name: str, queries: int, keys: int
) -> None:
    query, key, value = arrays(queries=queries, keys=keys)
    scores = plain.scores(name, query, key)
    hidden = plain.hidden(queries, keys)
    output = create(name, dim=12, heads=3, causal=True).attend(query, key, value)
    some = ~hidden.all(axis=-1)
    scores = np.where(hidden, -np.inf, scores)[..., some, :]
    np.testing.assert_allclose(output[..., some, :], plain.attend(name, scores, value), **CLOSE)
    assert not output[..., ~some, :].any()


@each
def test_softcap(create: Create, arrays: Arrays, plain: SimpleNamespace, name: str) -> None:
    query, key, value = arrays()
    scores = 1.5 * np.tanh(plain.scores(name, query, key) / 1.5)
    output = create(name, dim=12, heads=3, softcap=1.5).attend(query, key, value)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


@each
def test_kv_heads(create: Create, arrays: Arrays, plain: SimpleNamespace, name: str) -> None:
    query, key, value = arrays(heads=6, key_heads=2)
    output = create(name, dim=24, heads=6, kv_heads=2).attend(query, key, value)
    for head in range(6):
        shared = head // 3
        scores = plain.scores(name, query[:, [head]], key[:, [shared]])
        expected = plain.attend(name, scores, value[:, [shared]])
        np.testing.assert_allclose(output[:, [head]], expected, **CLOSE)


@each
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": 50.0},
        {"interleaved": True},
        {"size": 2},
        {"factor": 4.0},
    ],
    ids=str,
)
def test_rope(
    create: Create, arrays: Arrays, plain: SimpleNamespace, name: str, options: dict[str, Any]
) -> None:
    query, key, value = arrays()
    # The last of 5 queries is at the last of 7 keys.
    scores = plain.scores(name, plain.rope(query, 2, **options), plain.rope(key, 0, **options))
    position = {"kind": "rope", **options} if options else "rope"
    output = create(name, dim=12, heads=3, position=position).attend(query, key, value)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


@each
@pytest.mark.parametrize("heads", [2, 3])
def test_alibi(
    create: Create, arrays: Arrays, plain: SimpleNamespace, name: str, heads: int
) -> None:
    query, key, value = arrays(heads=heads)
    scores = plain.scores(name, query, key) + plain.alibi(heads, 5, 7)
    output = create(name, dim=4 * heads, heads=heads, position="alibi").attend(query, key, value)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


def test_alibi_slopes_of_the_paper(plain: SimpleNamespace) -> None:
    assert plain.slopes(8) == pytest.approx([2.0**-i for i in range(1, 9)])
    assert plain.slopes(3) == pytest.approx([2.0**-4, 2.0**-8, 2.0**-2])


@each
@pytest.mark.parametrize(
    "options",
    [{}, {"buckets": 8, "max_distance": 5}, {"bidirectional": False}],
    ids=str,
)
def test_t5(
    create: Create, arrays: Arrays, plain: SimpleNamespace, name: str, options: dict[str, Any]
) -> None:
    query, key, value = arrays(queries=20, keys=24)
    position = {"kind": "t5", **options} if options else "t5"
    mechanism = create(name, dim=12, heads=3, position=position)
    buckets = options.get("buckets", 32)
    table = np.random.default_rng(5).standard_normal((3, buckets)).astype(np.float32)
    mechanism.parameters.update({"position.table": table}, partial=True)
    which = [[plain.bucket(j - (i + 4), **options) for j in range(24)] for i in range(20)]
    scores = plain.scores(name, query, key) + table[:, which].astype(np.float64)
    output = mechanism.attend(query, key, value)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


@each
def test_bias_comes_after_the_cap(
    create: Create, arrays: Arrays, plain: SimpleNamespace, name: str
) -> None:
    query, key, value = arrays()
    bias = np.random.default_rng(3).standard_normal((3, 5, 7))
    scores = 2.0 * np.tanh((plain.scores(name, query, key) + plain.alibi(3, 5, 7)) / 2.0) + bias
    mechanism = create(name, dim=12, heads=3, softcap=2.0, position="alibi")
    output = mechanism.attend(query, key, value, bias=bias)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_not_swallowed(create: Create, name: str, dtype: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(dtype)
    wrong = x.copy()
    wrong[2, 0] = np.nan
    mechanism = create(name, dim=12, heads=1)
    assert np.isnan(mechanism(wrong, x, x)).any(axis=-1).tolist() == [i == 2 for i in range(5)]
    assert np.isnan(mechanism(x, wrong, x)).any(axis=-1).all()


# ---- dropout ----


def dropped_weights(mechanism: Any, arrays: Arrays, rng: Any) -> Array:
    """The weights that were used: values are the identity."""
    query, key, _ = arrays(queries=40, keys=60)
    value = np.broadcast_to(np.eye(60), (2, 3, 60, 60))
    return mechanism.attend(query, key, value, training=True, rng=rng)


@each
def test_dropout(create: Create, arrays: Arrays, name: str) -> None:
    query, key, value = arrays(queries=40, keys=60)
    mechanism = create(name, dim=12, heads=3, dropout=0.3)
    weights = mechanism.observe(query, key, value, "weights").weights
    dropped = dropped_weights(mechanism, arrays, 7)

    some = weights > 0
    kept = dropped != 0
    assert not (kept & ~some).any()
    # What is kept grows, so that the expectation stays.
    np.testing.assert_allclose(dropped[kept], weights[kept] / 0.7, rtol=1e-9)
    low, high = binom.interval(1 - 1e-6, int(some.sum()), 0.7)
    assert low <= kept.sum() <= high
    # No head, row or column is privileged.
    for axes in ((0, 1, 2), (1, 2, 3), (0, 1, 3), (0, 2, 3)):
        counts, totals = kept.sum(axis=axes), some.sum(axis=axes)
        low, high = binom.interval(1 - 1e-6, totals, 0.7)
        assert ((low <= counts) & (counts <= high)).all()

    # Not in use, the option changes nothing.
    still = create(name, dim=12, heads=3).attend(query, key, value)
    np.testing.assert_array_equal(mechanism.attend(query, key, value), still)


@each
def test_dropout_is_decided_by_the_seed(create: Create, arrays: Arrays, name: str) -> None:
    mechanism = create(name, dim=12, heads=3, dropout=0.5)
    first = dropped_weights(mechanism, arrays, 1)
    np.testing.assert_array_equal(dropped_weights(mechanism, arrays, 1), first)
    assert (dropped_weights(mechanism, arrays, 2) != first).any()
    generator = np.random.default_rng(0)
    drawn = dropped_weights(mechanism, arrays, generator)
    assert (dropped_weights(mechanism, arrays, generator) != drawn).any()
    again = dropped_weights(mechanism, arrays, np.random.default_rng(0))
    np.testing.assert_array_equal(again, drawn)


def test_expectation_of_dropout(create: Create, arrays: Arrays) -> None:
    mechanism = create("scaled-dot-product", dim=12, heads=3, dropout=0.4)
    query, key, value = arrays(queries=40, keys=60)
    weights = mechanism.observe(query, key, value, "weights").weights
    runs = 300
    mean = sum(dropped_weights(mechanism, arrays, seed) for seed in range(runs)) / runs
    # A kept weight is w / 0.6, so one run has standard deviation w √(0.4 / 0.6).
    deviation = weights * math.sqrt(0.4 / 0.6 / runs)
    assert (abs(mean - weights) <= 6 * deviation).all()


def test_dropout_needs_a_seed(create: Create, arrays: Arrays) -> None:
    mechanism = create("scaled-dot-product", dim=12, heads=3, dropout=0.4)
    with pytest.raises(ArgumentError, match="rng"):
        mechanism.attend(*arrays(), training=True)


# ---- threads ----


@each
def test_threads(create: Create, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyattn_core.simd import engine, threads

    used: list[int] = []
    run = threads.run

    def counted(kernel: Any, arguments: Any, tasks: int, workers: int) -> None:
        used.append(workers)
        run(kernel, arguments, tasks, workers)

    monkeypatch.setattr(engine.threads, "run", counted)
    monkeypatch.setattr(engine.threads, "limit", lambda: 2)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((4, 320, 32), np.float32) for _ in range(3))
    outputs = [
        create(name, dim=128, heads=4, threads=threads).attend(query, key, value)
        for threads in (1, 2, 64, None)
    ]
    assert used == [1, 2, 2, 2]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


# ---- every option does something ----

OTHER_VALUES: dict[str, Any] = {
    "causal": True,
    "dropout": 0.5,
    "softcap": 0.5,
    "position": "alibi",
    "scale": 0.123,
    "epsilon": 0.9,
    "bandwidth": 0.7,
    "sink": 2.0,
    "offset": 0.25,
    "mean": False,
    "bias": False,
    "norm": True,
    "lambda_init": 0.1,
    "beta": 2.0,
    "iterations": 0,
    "tolerance": 10.0,
    "hidden": 3,
    "diagonal": False,
    "latent": 3,
    "query_latent": 2,
    "rope_size": 2,
    "tied": True,
}
BY_MECHANISM = {("latent", "position"): {"kind": "rope", "base": 7.0}}
# Of these there are tests apart, those of `reproducible` and of scores in core; `absorbed` must not
# change the output.
LAYOUT = {
    "dim", "heads", "kv_heads", "threads", "reproducible", "score", "score_params", "absorbed",
    "output_bias", "head_size", "value_size", "window", "query_key_norm", "norm_epsilon",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, spec in SPECS.items()
        for option in resolve(spec.config).model_fields
        if option not in LAYOUT
    ],
)
def test_every_option_changes_the_output(
    create: Create, arrays: Arrays, name: str, option: str
) -> None:
    def attend(**options: Any) -> Array:
        mechanism = create(name, dim=12, heads=3, **options)
        if "query.bias" in mechanism.parameters:
            mechanism.parameters.update({"query.bias": np.ones(12)}, partial=True)
        query, key, _ = arrays()
        result: Array = mechanism.attend(query, key, key, training=True, rng=1)
        return result

    other = BY_MECHANISM.get((name, option), OTHER_VALUES[option])
    assert not np.allclose(attend(**{option: other}), attend())


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("gaussian", {"bandwidth": 0}, "bandwidth: got 0; expected a number greater than 0"),
        ("gaussian", {"bandwidth": (1.0, -1.0)}, "a number greater than 0, or one for each head"),
        ("gaussian", {"bandwidth": (1.0,)}, "one number, or 2, one for each head"),
        (
            "softpick",
            {"epsilon": 0},
            "epsilon: got 0; expected at least 1e-12 and less than 1",
        ),
        ("cosine", {"scale": -1}, "scale: got -1; expected greater than 0"),
        ("sigmoid", {"offset": float("nan")}, "offset"),
        ("softmax-one", {"sink": "low"}, "sink: got low; expected a valid number"),
        ("relu-squared", {"means": True}, "did you mean 'mean'"),
        ("sparsemax", {"dropout": 1.0}, "dropout: got 1.0; expected at least 0 and less than 1"),
        ("l2", {"softcap": 0}, "softcap: got 0; expected greater than 0"),
        ("entmax15", {"position": "rotary"}, "position"),
        ("scaled-dot-product", {"heads": 3}, "3 does not divide dim 8"),
        ("scaled-dot-product", {"kv_heads": 4}, "4 does not divide heads 2"),
    ],
)
def test_option_errors(create: Create, name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        create(name, **{"dim": 8, "heads": 2, **options})


def test_rope_needs_an_even_size(create: Create) -> None:
    mechanism = create("scaled-dot-product", dim=6, heads=2, position="rope")
    with pytest.raises(ArgumentError, match=r"position\.size: got 3; expected an even number"):
        mechanism(np.ones((4, 6)))


def test_shape_errors(create: Create) -> None:
    mechanism = create("scaled-dot-product", dim=8, heads=2)
    with pytest.raises(ShapeError, match=r"query: got \(4, 6\); expected a last axis of dim=8"):
        mechanism(np.ones((4, 6)))
    with pytest.raises(ShapeError, match=r"query: got .*expected 2 heads of size 4"):
        mechanism.attend(*np.ones((3, 4, 5, 4)))
