"""The largest weights of rows that lie in arrays, against sorting pairs in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from polyattn_core.largest import largest, largest_of_blocks


def by_hand(weights: np.ndarray, keys: np.ndarray, top: int) -> list[tuple[float, int]]:
    pairs = [(float(w), int(k)) for w, k in zip(weights, keys, strict=True) if w > 0 and k >= 0]
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))
    return (pairs + [(0.0, -1)] * top)[:top]


@pytest.mark.parametrize("top", [1, 3, 7, 12])
@pytest.mark.parametrize("named", [False, True])
def test_they_are_the_first_of_the_sorted_pairs(top: int, named: bool) -> None:
    rng = np.random.default_rng(top)
    # Few different weights, so that many are equal; some below 0.
    weights = rng.integers(-2, 4, (2, 5, 7)).astype(np.float32)
    keys = np.broadcast_to(np.arange(7), weights.shape)
    if named:
        keys = rng.permuted(np.broadcast_to(np.arange(20), (2, 5, 20)), axis=-1)[..., :7]
        keys[0, :, 2] = -1
    found = largest(weights, top, keys if named else None)
    assert found["top_weights"].dtype == np.float32
    assert found["top_keys"].dtype == np.int64
    for place in np.ndindex(2, 5):
        got = zip(found["top_weights"][place], found["top_keys"][place], strict=True)
        assert list(got) == by_hand(weights[place], keys[place], top)


def test_blocks_are_put_together() -> None:
    weights = np.random.default_rng(0).random((2, 3, 130, 9))
    blocks = largest_of_blocks(lambda rows: weights[:, :, rows], 130, 4)
    whole = largest(weights, 4)
    for name in whole:
        np.testing.assert_array_equal(blocks[name], whole[name])


def test_what_is_not_a_number_stays_so() -> None:
    found = largest(np.full((1, 3), np.nan), 2)
    assert np.isnan(found["top_weights"]).all()
    assert (found["top_keys"] == -1).all()
