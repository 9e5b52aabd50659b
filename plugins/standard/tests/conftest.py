"""Mechanisms of this family, and the shared axes of all mechanisms written down once more.

What is here follows papers and loops over positions; it uses nothing of the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
from scipy.spatial.distance import cdist

from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_standard.plugin import MECHANISMS

Array = npt.NDArray[Any]
SPECS = {spec.name: spec for spec in MECHANISMS}


@pytest.fixture(scope="session")
def create() -> Callable[..., Any]:
    """`create(name, **options)` without a registry: what is tested need not be installed."""

    def make(name: str, **options: Any) -> Any:
        spec = SPECS[name]
        config = build_config(resolve(spec.config), options, mechanism=spec.full_name)
        return resolve(spec.factory)(config, spec=spec)

    return make


@pytest.fixture(scope="session")
def arrays() -> Callable[..., tuple[Array, Array, Array]]:
    """Normally distributed query, key and value, by heads."""

    def make(
        *, heads: int = 3, key_heads: int | None = None, queries: int = 5, keys: int = 7,
        size: int = 4, seed: int = 0,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        rng = np.random.default_rng(seed)
        key_heads = key_heads or heads
        return (
            rng.standard_normal((2, heads, queries, size)),
            rng.standard_normal((2, key_heads, keys, size)),
            rng.standard_normal((2, key_heads, keys, size + 1)),
        )

    return make


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """Scores, positions and weights by their definitions; see the functions below."""
    return SimpleNamespace(
        scores=scores,
        weights=weights,
        attend=attend,
        hidden=hidden,
        slopes=alibi_slopes,
        alibi=alibi,
        rope=rope,
        bucket=bucket,
    )


def _by_head(function: Callable[[Array, Array], Array], query: Array, key: Array) -> Array:
    batches = zip(query, key, strict=True)
    rows = [[function(q, k) for q, k in zip(*batch, strict=True)] for batch in batches]
    return np.array(rows)


def scores(name: str, query: Array, key: Array) -> Array:
    """Scores of a mechanism with default options, before everything that options add."""
    size = query.shape[-1]
    if name == "cosine":
        return 10 * _by_head(lambda q, k: 1 - cdist(q, k, "cosine"), query, key)
    if name == "l2":
        return -_by_head(lambda q, k: cdist(q, k, "sqeuclidean"), query, key) / math.sqrt(size)
    if name == "gaussian":
        return -_by_head(lambda q, k: cdist(q, k, "sqeuclidean"), query, key) / 2 / math.sqrt(size)
    return np.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(size)


def weights(name: str, scores: Array) -> Array:
    """Weights of a mechanism with default options; hidden scores are −inf."""
    keys = scores.shape[-1]
    seen = ~np.isneginf(scores)
    if name == "sigmoid":
        return scipy.special.expit(scores - math.log(keys))
    if name == "relu-squared":
        return np.where(scores > 0, scores, 0) ** 2 / keys
    if name == "softpick":
        less = np.expm1(scores)
        total = (abs(less) * seen).sum(axis=-1, keepdims=True)
        return np.where(less > 0, less, 0) / (total + 1e-6)
    if name == "softmax-one":
        extended = np.concatenate((scores, np.zeros_like(scores[..., :1])), axis=-1)
        return scipy.special.softmax(extended, axis=-1)[..., :-1]
    if name in ("sparsemax", "entmax15"):
        by_sorting = sparsemax_row if name == "sparsemax" else entmax15_row
        return np.apply_along_axis(by_sorting, -1, scores)
    return scipy.special.softmax(scores, axis=-1)


def attend(name: str, scores: Array, value: Array) -> Array:
    """Output from scores."""
    return weights(name, scores) @ value


def sparsemax_row(row: Array) -> Array:
    """Algorithm 1 of arXiv:1602.02068: sorted scores, the largest feasible support."""
    ordered = np.sort(row[~np.isneginf(row)])[::-1]
    sums = np.cumsum(ordered)
    sizes = np.arange(1, len(ordered) + 1)
    support = sizes[1 + sizes * ordered > sums].max()
    return np.maximum(row - (sums[support - 1] - 1) / support, 0)


def entmax15_row(row: Array) -> Array:
    """Algorithm 2 of arXiv:1905.05702: a quadratic equation for each size of the support."""
    half = row / 2
    ordered = np.sort(half[~np.isneginf(half)])[::-1]
    for size in range(len(ordered), 0, -1):
        mean, square = ordered[:size].mean(), (ordered[:size] ** 2).mean()
        inside = 1 / size - (square - mean**2)
        if inside < 0:
            continue
        threshold = mean - math.sqrt(inside)
        if ordered[size - 1] >= threshold:
            return np.maximum(half - threshold, 0) ** 2
    raise AssertionError("no support fits")


def hidden(queries: int, keys: int) -> Array:
    """What a causal mask hides, with the last query at the last key."""
    return np.array([[j > i + keys - queries for j in range(keys)] for i in range(queries)])


def alibi_slopes(heads: int) -> list[float]:
    """As in the code that came with arXiv:2108.12409."""

    def of_power(count: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [start * start**i for i in range(count)]

    if math.log2(heads).is_integer():
        return of_power(heads)
    below = 2 ** math.floor(math.log2(heads))
    return of_power(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def alibi(heads: int, queries: int, keys: int) -> Array:
    """What ALiBi adds to scores."""
    shift = keys - queries
    return np.array(
        [
            [[-slope * abs(i + shift - j) for j in range(keys)] for i in range(queries)]
            for slope in alibi_slopes(heads)
        ]
    )


def rope(
    array: Array, first: int, *, base: float = 10_000.0, interleaved: bool = False,
    size: int | None = None, factor: float = 1.0,
) -> Array:  # fmt: skip
    """Each pair of coordinates of each token times a rotation matrix (arXiv:2104.09864, eq. 15)."""
    size = size or array.shape[-1]
    turned = array.copy()
    for token in range(array.shape[-2]):
        for pair in range(size // 2):
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
            angle = (first + token) / factor * base ** (-2 * pair / size)
            matrix = np.array(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            )
            turned[..., token, [a, b]] = array[..., token, [a, b]] @ matrix.T
    return turned


def bucket(
    distance: int, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> int:
    """The bucket of key − query, as in the code that came with arXiv:1910.10683."""
    result = 0
    n = -distance
    if bidirectional:
        buckets //= 2
        result += buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return result + n
    far = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (buckets - exact))
    return result + min(far, buckets - 1)
