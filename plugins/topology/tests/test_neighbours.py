"""The coherence metric of the report against scikit-learn, and where it has to be high and low."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors

from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_topology.neighbours import coherence_metric, estimate


def coherence(keys):
    return coherence_metric(keys, keys, keys)


@pytest.mark.parametrize(("n", "neighbours"), [(3, 1), (39, 1), (65, 1), (100, 2), (250, 6)])
def test_against_scikit_learn(rng, n, neighbours):
    keys = 5 + rng.standard_normal((n, 7))
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(keys).kneighbors()
    expected = 1 - (distances**2).mean() / (pdist(keys) ** 2).mean()
    assert coherence(keys) == pytest.approx(max(expected, 0), abs=1e-12)


def test_a_sample_is_within_its_error(rng):
    keys = rng.standard_normal((1500, 4)) * np.array([3, 2, 1, 0.1])
    exact, none = estimate(keys, sample=1500)
    assert none == 0
    found = [estimate(keys, sample=100, seed=seed) for seed in range(20)]
    apart = [(one.value - exact) / one.standard_error for one in found]
    assert 0.5 < np.std(apart) < 1.6
    assert estimate(keys).standard_error < 0.02


def test_noise_is_less_coherent_than_structure(rng):
    noise = rng.standard_normal((400, 64))
    clusters = np.repeat(rng.standard_normal((8, 64)), 50, axis=0) + 0.3 * noise
    plane = rng.standard_normal((400, 2)) @ rng.standard_normal((2, 64))
    copies = np.tile(noise[:40], (10, 1))
    assert coherence(noise) < 0.4
    assert min(map(coherence, (clusters, plane, copies))) > 0.8
    wider = [coherence(rng.standard_normal((400, size))) for size in (2, 8, 32, 128)]
    assert wider == sorted(wider, reverse=True)


def test_what_changes_nothing(rng):
    keys = rng.standard_normal((60, 5))
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    for other in (keys + 9, 7 * keys, keys @ turn, keys[rng.permutation(60)]):
        assert coherence(other) == pytest.approx(coherence(keys))
    broken = np.concatenate((keys, np.full((3, 5), np.nan)))
    assert coherence(broken) == coherence(keys)
    both = np.stack((keys, rng.standard_normal((60, 5))))
    assert coherence(both) == pytest.approx((coherence(both[0]) + coherence(both[1])) / 2)


def test_the_least_keys(rng):
    assert coherence(rng.standard_normal((2, 4))) == 1
    assert coherence(np.ones((30, 4))) == 1
    assert 0 <= coherence(rng.standard_normal((30, 4)).astype(np.float16)) <= 1


def test_refusals():
    with pytest.raises(ShapeError, match="key"):
        coherence(np.ones(3))
    with pytest.raises(ArgumentError, match="sample: got 1"):
        estimate(np.ones((3, 2)), sample=1)
