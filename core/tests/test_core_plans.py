"""What repeats from call to call is worked out once, and nothing else is taken over."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from polyattn_core import diagnostics
from polyattn_core.errors import DTypeError, ShapeError
from polyattn_core.mechanism import Call
from polyattn_core.simd.rules import score_rule
from polyattn_core.streaming import StreamingMechanism

Build = Callable[..., Any]
Array = Any


@score_rule
def sharpened(score, factor):  # type: ignore[no-untyped-def]
    return score * factor


class Sharpened(StreamingMechanism):
    """Looks at the numbers of a call, not only at their shapes."""

    def _rules(self, call: Call) -> list[Any]:
        return [(sharpened, (float(np.abs(call.query).max()),))]


def arrays(seed: int, *lead: int, queries: int = 20, keys: int = 30) -> list[Array]:
    rng = np.random.default_rng(seed)
    shapes = [(*lead, 2, n, 4) for n in (queries, keys, keys)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def dense(query: Array, key: Array, value: Array, causal: bool = False) -> Array:
    scores = query.astype(float) @ key.astype(float).swapaxes(-1, -2) / 2
    if causal:
        n, m = scores.shape[-2:]
        scores[..., np.arange(m) > np.arange(n)[:, None] + m - n] = -np.inf
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True) @ value


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_each_call_has_its_own_numbers(build: Build, lead: tuple[int, ...], causal: bool) -> None:
    mechanism = build(dim=8, heads=2, causal=causal)
    kept = []
    for seed in range(3):
        for queries in (20, 21):
            inputs = arrays(seed, *lead, queries=queries)
            found = mechanism.attend(*inputs)
            np.testing.assert_allclose(found, dense(*inputs, causal=causal), atol=2e-6)
            kept.append((found, found.copy()))
    assert all((found == copy).all() for found, copy in kept), "an output was used twice"
    assert len(mechanism._plans) == 2


def test_layouts_are_told_apart(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    query, key, value = arrays(0, 3)
    expected = mechanism.attend(query, key, value)
    turned = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)
    spread = np.zeros((*query.shape[:-1], 8), np.float32)[..., ::2]
    spread[:] = query
    shifted = np.zeros(query.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(query.shape)
    shifted[:] = query
    assert not shifted.flags.aligned
    repeated = np.broadcast_to(key[:1], key.shape)
    for _ in range(2):
        for same in (query, turned, spread, shifted):
            np.testing.assert_array_equal(mechanism.attend(same, key, value), expected)
        np.testing.assert_allclose(
            mechanism.attend(query, repeated, value), dense(query, repeated, value), atol=2e-6
        )
        wide = mechanism.attend(*(x.astype(np.float64) for x in (query, key, value)))
        assert wide.dtype == np.float64
        assert mechanism.attend(query.tolist(), key.tolist(), value.tolist()).dtype == np.float64


def test_errors_name_shapes_as_they_were_passed(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    query, key, value = arrays(0)
    mechanism.attend(query, key, value)
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"value: got \(2, 29, 4\)"):
            mechanism.attend(query, key, value[:, 1:])
        with pytest.raises(DTypeError):
            mechanism.attend(query, key, value.astype(np.float64))


def test_numbers_that_decide_are_looked_at_in_each_call(build: Build) -> None:
    query, key, value = arrays(0, 1)
    mechanism = build(Sharpened, dim=8, heads=2)
    for factor in (1, 2, 3):
        sharp = query * np.float32(factor)
        expected = dense(sharp * np.abs(sharp).max(), key, value)
        np.testing.assert_allclose(mechanism.attend(sharp, key, value), expected, atol=2e-5)


def test_masks_biases_and_training_are_not_forgotten(build: Build) -> None:
    mechanism = build(dim=8, heads=2, dropout=0.5)
    query, key, value = arrays(0, 1)
    plain = mechanism.attend(query, key, value)
    visible = np.ones((20, 30), bool)
    visible[:, 10:] = False
    np.testing.assert_allclose(
        mechanism.attend(query, key, value, mask=visible),
        dense(query, key[..., :10, :], value[..., :10, :]),
        atol=2e-6,
    )
    assert (mechanism.attend(query, key, value, bias=-visible.astype(np.float32)) != plain).any()
    assert (mechanism.attend(query, key, value, training=True, rng=0) != plain).any()
    np.testing.assert_array_equal(mechanism.attend(query, key, value), plain)


def test_events_are_published(build: Build, listen: Callable[..., list[Any]]) -> None:
    mechanism = build(dim=8, heads=2)
    inputs = arrays(0, 1)
    mechanism.attend(*inputs)
    seen = listen(diagnostics.AttentionComputed)
    mechanism.attend(*inputs)
    assert len(seen) == 1


def test_few_are_kept_and_none_is_pickled(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    for keys in range(1, 200):
        mechanism.attend(*arrays(0, 1, queries=2, keys=keys))
    assert len(mechanism._plans) <= 64
    again = pickle.loads(pickle.dumps(mechanism))
    assert "_plans" not in again.__dict__
    inputs = arrays(0, 1)
    np.testing.assert_array_equal(again.attend(*inputs), mechanism.attend(*inputs))


def test_many_threads_at_once(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    jobs = [arrays(seed, 1, queries=1 + seed % 5) for seed in range(40)]
    expected = [dense(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(
            pool.map(lambda job: mechanism.attend(*job), jobs), expected, strict=True
        ):
            np.testing.assert_allclose(found, right, atol=2e-6)
