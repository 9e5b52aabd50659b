"""Which pairs a pattern computes, against loops over the definitions of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ConfigError

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

SIZES = [(1, 1), (2, 2), (9, 9), (70, 70), (1, 9), (3, 20), (66, 130), (9, 4)]
sizes = pytest.mark.parametrize(("queries", "keys"), SIZES)


def visible(mechanism: Any, arrays: Arrays, queries: int, keys: int) -> Array:
    """Which weights are above 0, (heads, queries, keys)."""
    heads = mechanism.config.heads
    query, key, value = arrays(queries, keys, heads=heads, size=mechanism.config.head_dim)
    weights = mechanism.observe(query, key, value, "weights").weights
    np.testing.assert_array_equal(weights[0] > 0, weights[1] > 0)
    total = weights.sum(axis=-1)
    np.testing.assert_allclose(total, (weights > 0).any(axis=-1), atol=1e-12)
    result: Array = weights[0] > 0
    return result


def by_loop(
    queries: int, keys: int, sees: Callable[[int, int], bool], *, causal: bool = False
) -> Array:
    """Pairs of positions for which `sees(i, j)`, the last query at the last key."""
    result = np.zeros((queries, keys), bool)
    for row in range(queries):
        i = row + keys - queries
        for j in range(keys):
            result[row, j] = sees(i, j) and not (causal and j > i)
    return result


def check(
    mechanism: Any, arrays: Arrays, queries: int, keys: int, sees: Callable[[int, int], bool]
) -> None:
    expected = by_loop(queries, keys, sees, causal=mechanism.config.causal)
    for head in visible(mechanism, arrays, queries, keys):
        np.testing.assert_array_equal(head, expected)


def output_is_dense_attention_over_it(
    mechanism: Any, arrays: Arrays, dense: Callable[..., Array], queries: int, keys: int
) -> None:
    query, key, value = arrays(queries, keys, heads=2, size=mechanism.config.head_dim)
    seen = visible(mechanism, arrays, queries, keys)
    expected = dense(query, key, value, seen)
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, atol=1e-12)


# ---- windows ----


@sizes
@pytest.mark.parametrize("window", [1, 2, 5, 6, 500])
def test_sliding_window(
    create: Create, arrays: Arrays, window: int, queries: int, keys: int
) -> None:
    causal = create("sliding-window", dim=8, heads=2, window=window)
    assert causal.config.causal
    check(causal, arrays, queries, keys, lambda i, j: 0 <= i - j < window)
    both = create("sliding-window", dim=8, heads=2, window=window, causal=False)
    check(both, arrays, queries, keys, lambda i, j: abs(i - j) <= window // 2)


@sizes
@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("step", [1, 3])
def test_dilated(
    create: Create, arrays: Arrays, window: int, step: int, queries: int, keys: int
) -> None:
    options: dict[str, Any] = {"dim": 8, "heads": 2, "window": window, "step": step}
    half = {step * n for n in range(-(window // 2), window // 2 + 1)}
    check(create("dilated", **options), arrays, queries, keys, lambda i, j: i - j in half)
    past = {step * n for n in range(window)}
    causal = create("dilated", **options, causal=True)
    check(causal, arrays, queries, keys, lambda i, j: i - j in past)


@sizes
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (4, 1), (4, 3), (30, 4)])
def test_streaming(
    create: Create, arrays: Arrays, window: int, sinks: int, queries: int, keys: int
) -> None:
    options: dict[str, Any] = {"dim": 8, "heads": 2, "window": window, "sinks": sinks}
    causal = create("streaming", **options)
    assert causal.config.causal
    check(causal, arrays, queries, keys, lambda i, j: j < sinks or i - j < window)
    both = create("streaming", **options, causal=False)
    check(both, arrays, queries, keys, lambda i, j: j < sinks or abs(i - j) <= window // 2)


@pytest.mark.parametrize(("queries", "keys"), SIZES[2:4] + SIZES[5:])
@pytest.mark.parametrize("tokens", [0, 1, 3, (0,), (2, -1), (-4, 1), ()])
def test_local_global(
    create: Create, arrays: Arrays, tokens: int | tuple[int, ...], queries: int, keys: int
) -> None:
    chosen = range(tokens) if isinstance(tokens, int) else [t % keys for t in tokens]
    options: dict[str, Any] = {"dim": 8, "heads": 2, "window": 4, "global_tokens": tokens}
    check(
        create("local-global", **options), arrays, queries, keys,
        lambda i, j: abs(i - j) <= 2 or i in chosen or j in chosen,
    )  # fmt: skip
    check(
        create("local-global", **options, causal=True), arrays, queries, keys,
        lambda i, j: i - j < 4 or i in chosen or j in chosen,
    )  # fmt: skip


def test_global_tokens_must_be_there(create: Create, arrays: Arrays) -> None:
    mechanism = create("local-global", dim=8, heads=2, global_tokens=(0, 7))
    mechanism.attend(*arrays(8, 8))
    with pytest.raises(ConfigError, match=r"global_tokens: got 7; expected .* among the 5 keys"):
        mechanism.attend(*arrays(5, 5))
    with pytest.raises(ConfigError, match="global_tokens: got -1; expected how many, at least 0"):
        create("local-global", dim=8, global_tokens=-1)


# ---- the sparse transformer ----


@sizes
@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("causal", [True, False])
def test_strided(
    create: Create, arrays: Arrays, stride: int, causal: bool, queries: int, keys: int
) -> None:
    def sees(i: int, j: int) -> bool:
        # The two heads of section 4.2: the previous l positions, and every l-th.
        return abs(i - j) <= stride or (i - j) % stride == 0

    mechanism = create("strided", dim=8, heads=2, stride=stride, causal=causal)
    check(mechanism, arrays, queries, keys, sees)


@sizes
@pytest.mark.parametrize(("stride", "summary"), [(1, 1), (4, 1), (8, 3), (5, 5)])
@pytest.mark.parametrize("causal", [True, False])
def test_fixed(
    create: Create, arrays: Arrays, stride: int, summary: int, causal: bool, queries: int, keys: int
) -> None:
    def sees(i: int, j: int) -> bool:
        return i // stride == j // stride or j % stride in range(stride - summary, stride)

    mechanism = create(
        "strided", dim=8, heads=2, stride=stride, pattern="fixed", summary=summary, causal=causal
    )
    check(mechanism, arrays, queries, keys, sees)


def test_summary_is_at_most_the_stride(create: Create, arrays: Arrays) -> None:
    with pytest.raises(ConfigError, match=r"summary: got 5; .*at most the stride 4"):
        create("strided", dim=8, stride=4, summary=5, pattern="fixed")
    # A default of 8 gives way.
    mechanism = create("strided", dim=8, heads=2, stride=4, pattern="fixed")
    check(mechanism, arrays, 9, 9, lambda i, j: True)


# ---- all of them ----

SMALL: dict[str, dict[str, Any]] = {
    "sliding-window": {"window": 5},
    "dilated": {"window": 4, "step": 3},
    "streaming": {"window": 6, "sinks": 2},
    "local-global": {"window": 6, "global_tokens": (1, 17)},
    "strided": {"stride": 7},
    "block-sparse": {"block": 8},
    "bigbird": {"block": 4, "random_blocks": 2, "global_blocks": (0, 3)},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("causal", [True, False])
def test_output(
    create: Create, arrays: Arrays, dense: Callable[..., Array], name: str, causal: bool
) -> None:
    mechanism = create(name, dim=8, heads=2, causal=causal, **SMALL[name])
    for queries, keys in ((30, 30), (7, 150), (70, 70)):
        output_is_dense_attention_over_it(mechanism, arrays, dense, queries, keys)


@pytest.mark.parametrize("name", SMALL)
def test_decoding_sees_what_the_whole_sequence_saw(
    create: Create, arrays: Arrays, name: str
) -> None:
    mechanism = create(name, dim=8, heads=2, causal=True, **SMALL[name])
    total = 75
    query, key, value = arrays(total, total)
    whole = mechanism.attend(query, key, value)
    for first, last in ((18, 40), (40, 41), (41, 42), (63, 75), (74, 75)):
        part = mechanism.attend(query[:, :, first:last], key[:, :, :last], value[:, :, :last])
        np.testing.assert_allclose(part, whole[:, :, first:last], atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_parts_of_the_keys_merge(create: Create, arrays: Arrays, name: str) -> None:
    mechanism = create(name, dim=8, heads=2, **SMALL[name])
    query, key, value = arrays(40, 70)
    parts = [
        mechanism.attend_partial(query, key[:, :, a:b], value[:, :, a:b], start=a, total=70)
        for a, b in ((0, 9), (9, 40), (40, 70))
    ]
    merged = parts[1].merge(parts[2]).merge(parts[0]).finish()
    np.testing.assert_allclose(merged, mechanism.attend(query, key, value), atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_a_mask_of_the_call_hides_more(create: Create, arrays: Arrays, name: str) -> None:
    mechanism = create(name, dim=8, heads=2, **SMALL[name])
    query, key, value = arrays(30, 30)
    mask = np.random.default_rng(0).random((30, 30)) < 0.5
    seen = visible(mechanism, arrays, 30, 30)
    found = mechanism.observe(query, key, value, "weights", mask=mask).weights > 0
    np.testing.assert_array_equal(found, np.broadcast_to(seen & mask, found.shape))
