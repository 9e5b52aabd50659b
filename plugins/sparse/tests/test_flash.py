"""Exact attention whatever the tiles; options of the soft-max mechanisms of the family."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core import masks
from polyattn_core.errors import ConfigError
from polyattn_core.spec import resolve
from polyattn_sparse.plugin import MECHANISMS

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
Dense = Callable[..., Array]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (63, 64), (65, 130), (7, 300), (130, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_every_block_size(
    create: Create, arrays: Arrays, dense: Dense, queries: int, keys: int, causal: bool
) -> None:
    query, key, value = arrays(queries, keys)
    seen = np.tri(queries, keys, keys - queries, dtype=bool) if causal else True
    expected = dense(query, key, value, seen)
    for block_size in range(16, 1025, 16):
        flash = create("flash", dim=8, heads=2, block_size=block_size, causal=causal)
        np.testing.assert_allclose(flash.attend(query, key, value), expected, **CLOSE)


def test_gradients_at_every_block_size(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 200)
    mask = masks.Causal() | masks.Prefix(50)
    gradients = []
    for block_size in (16, 48, 64, 208, 1024):
        flash = create("flash", dim=8, heads=2, block_size=block_size)
        output, pullback = flash.attend_vjp(query, key, value, mask=mask)
        gradients.append(pullback(np.cos(output)))
    for other in gradients[1:]:
        for name in ("query", "key", "value"):
            expected = getattr(gradients[0], name)
            np.testing.assert_allclose(getattr(other, name), expected, **CLOSE)


def test_block_sizes_are_different_tilings(create: Create, arrays: Arrays) -> None:
    """In float32 the order of additions shows."""
    single = [array.astype(np.float32) for array in arrays(64, 1000)]
    outputs = [
        create("flash", dim=8, heads=2, block_size=size).attend(*single)
        for size in (16, 64, 256, 1024)
    ]
    for i, output in enumerate(outputs):
        for other in outputs[:i]:
            assert (output != other).any()
            np.testing.assert_allclose(output, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block_size", [0, 8, 40, 1040, 16.5])
def test_wrong_block_sizes(create: Create, block_size: Any) -> None:
    with pytest.raises(ConfigError, match="block_size"):
        create("flash", dim=8, block_size=block_size)


def test_log_sum_exp(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(9, 100)
    found = create("flash", dim=8, heads=2).observe(query, key, value, "log_sum_exp").log_sum_exp
    expected = scipy.special.logsumexp(query @ key.swapaxes(-1, -2) / 2.0, axis=-1)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_memory_is_linear(create: Create) -> None:
    flash = create("flash", dim=8)
    x = np.random.default_rng(0).standard_normal((1, 3000, 8), np.float32)
    flash.attend_vjp(x, x, x)[1](x)  # compiled before it is measured
    tracemalloc.start()
    try:
        output, pullback = flash.attend_vjp(x, x, x)
        pullback(output)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Scores alone would be 375 times the input.
    assert peak < 30 * x.nbytes


# ---- options that flash, patterns and top-k share ----

WIDE: dict[str, dict[str, Any]] = {  # all keys in sight
    "flash": {},
    "sliding-window": {"window": 1000, "causal": False},
    "local-global": {"window": 2, "global_tokens": 1000},
    "dilated": {"window": 1000, "step": 1},
    "strided": {"stride": 1, "causal": False},
    "block-sparse": {"neighbours": 1000},
    "bigbird": {"global_blocks": 1000},
    "streaming": {"sinks": 1000, "causal": False},
    "top-k": {"k": 1000},
}
each = pytest.mark.parametrize("name", WIDE)


@each
def test_scale(create: Create, arrays: Arrays, dense: Dense, name: str) -> None:
    inputs = arrays()
    mechanism = create(name, dim=8, heads=2, scale=0.2, **WIDE[name])
    np.testing.assert_allclose(mechanism.attend(*inputs), dense(*inputs, scale=0.2), **CLOSE)


@each
def test_kv_heads(create: Create, arrays: Arrays, dense: Dense, name: str) -> None:
    inputs = arrays(heads=6, key_heads=2)
    mechanism = create(name, dim=24, heads=6, kv_heads=2, **WIDE[name])
    np.testing.assert_allclose(mechanism.attend(*inputs), dense(*inputs), **CLOSE)


@each
def test_softcap_and_alibi(create: Create, arrays: Arrays, dense: Dense, name: str) -> None:
    inputs = arrays()

    def adjust(scores: Array) -> Array:
        distance = np.array([[abs(i + 2 - j) for j in range(7)] for i in range(5)])
        slopes = np.array([2.0**-4, 2.0**-8])  # the paper's, for two heads
        return 1.5 * np.tanh((scores - slopes[:, None, None] * distance) / 1.5)

    mechanism = create(name, dim=8, heads=2, softcap=1.5, position="alibi", **WIDE[name])
    np.testing.assert_allclose(mechanism.attend(*inputs), dense(*inputs, adjust=adjust), **CLOSE)


@each
def test_rope(create: Create, arrays: Arrays, dense: Dense, name: str) -> None:
    query, key, value = arrays()

    def turned(array: Array, first: int) -> Array:
        # Size 4: coordinates 0 and 2 turn by 1 a position, 1 and 3 by 1/100.
        numbers = array[..., :2] + 1j * array[..., 2:]
        at = first + np.arange(array.shape[-2])
        numbers = numbers * np.exp(1j * at[:, None] * np.array([1.0, 0.01]))
        return np.concatenate((numbers.real, numbers.imag), axis=-1)

    expected = dense(turned(query, 2), turned(key, 0), value)
    mechanism = create(name, dim=8, heads=2, position="rope", **WIDE[name])
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, **CLOSE)


@each
def test_t5(create: Create, arrays: Arrays, dense: Dense, name: str) -> None:
    inputs = arrays()
    position = {"kind": "t5", "buckets": 4, "max_distance": 2}
    mechanism = create(name, dim=8, heads=2, position=position, **WIDE[name])
    table = np.array([[1.0, 2.0, -3.0, 5.0], [0.0, -2.0, 4.0, 0.5]], np.float32)
    mechanism.parameters.update({"position.table": table})

    def adjust(scores: Array) -> Array:
        # Keys at or before the query: 0 at distance 0, else 1; keys after it: 3.
        at = [[0 if j == i + 2 else 1 if j < i + 2 else 3 for j in range(7)] for i in range(5)]
        return scores + table[:, at]

    np.testing.assert_allclose(mechanism.attend(*inputs), dense(*inputs, adjust=adjust), **CLOSE)


@each
def test_dropout(create: Create, arrays: Arrays, name: str) -> None:
    query, key, value = arrays(40, 60)
    mechanism = create(name, dim=8, heads=2, dropout=0.25, **WIDE[name])
    weights = mechanism.observe(query, key, value, "weights").weights
    identity = np.broadcast_to(np.eye(60), (2, 2, 60, 60))
    dropped = mechanism.attend(query, key, identity, training=True, rng=3)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], weights[kept] / 0.75, rtol=1e-10)
    deviation = math.sqrt(0.25 * 0.75 / kept.size)
    assert abs(kept.mean() - 0.75) < 5 * deviation
    np.testing.assert_array_equal(
        mechanism.attend(query, key, identity), mechanism.observe(query, key, identity).output
    )


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
    inputs = [rng.standard_normal((4, 320, 32), np.float32) for _ in range(3)]
    first, second = (
        create(name, dim=128, heads=4, threads=threads, **WIDE[name]).attend(*inputs)
        for threads in (1, 2)
    )
    assert used == [1, 2]
    np.testing.assert_array_equal(first, second)


# ---- every option does something ----

OTHER_VALUES: dict[str, Any] = {
    "causal": None,  # the opposite
    "dropout": 0.5,
    "softcap": 0.5,
    "position": "alibi",
    "scale": 0.123,
    "window": 2,
    "global_tokens": 4,
    "step": 3,
    "stride": 2,
    "pattern": "fixed",
    "summary": 1,
    "block": 8,
    "neighbours": 0,
    "layout": np.eye(10, dtype=bool),
    "global_blocks": 3,
    "random_blocks": 0,
    "seed": 1,
    "sinks": 9,
    "k": 2,
}
START: dict[str, dict[str, Any]] = {  # where the option is to make a difference at 40 tokens
    "sliding-window": {"window": 8},
    "local-global": {"window": 4},
    "dilated": {"window": 8},
    "strided": {"stride": 6},
    "block-sparse": {"block": 4},
    "bigbird": {"block": 2},
    "streaming": {"window": 5},
}
NEEDS: dict[str, dict[str, Any]] = {"summary": {"pattern": "fixed", "summary": 4}}
# With tests of their own; those of `reproducible` and of scores are in core.
ELSEWHERE = {
    "dim", "heads", "kv_heads", "threads", "block_size", "reproducible", "score", "score_params",
}  # fmt: skip
SOFTMAX = [spec for spec in MECHANISMS if spec.name in WIDE]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (spec.name, option)
        for spec in SOFTMAX
        for option in resolve(spec.config).model_fields
        if option not in ELSEWHERE
    ],
)
def test_every_option_changes_the_output(
    create: Create, arrays: Arrays, name: str, option: str
) -> None:
    def attend(**options: Any) -> Array:
        start = {**START.get(name, {}), **NEEDS.get(option, {})}
        mechanism = create(name, dim=8, heads=2, **{**start, **options})
        result: Array = mechanism.attend(*arrays(40, 40), training=True, rng=1)
        return result

    value = OTHER_VALUES[option]
    if option == "causal":
        value = not create(name, dim=8).config.causal
    assert not np.allclose(attend(**{option: value}), attend())
