"""The mechanisms against SciPy and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

NAMES = ("fisher-rao", "kl-bregman", "natural-gradient")


def arrays(rng, size=6):
    return (
        rng.standard_normal((2, 3, 5, size)),
        rng.standard_normal((2, 3, 7, size)),
        rng.standard_normal((2, 3, 7, 4)),
    )


def pairs(function, p, r):
    return function(p[..., :, None, :], r[..., None, :, :])


@pytest.mark.parametrize("beta", [0.5, 6.0])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_distances_of_scipy(create, rng, beta, tau):
    query, key, value = arrays(rng)
    p, r = softmax(query / tau, axis=-1), softmax(key / tau, axis=-1)
    options = {"dim": 18, "heads": 3, "sharpness": beta, "temperature": tau}
    divergence = pairs(lambda a, b: rel_entr(a, b).sum(-1), p, r)
    expected = softmax(-beta * divergence, axis=-1) @ value
    found = create("kl-bregman", **options).attend(query, key, value)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    distance = 2 * np.arccos(pairs(lambda a, b: np.sqrt(a * b).sum(-1), p, r))
    expected = softmax(-beta * distance, axis=-1) @ value
    found = create("fisher-rao", **options).attend(query, key, value)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_divergence_is_not_symmetric(create):
    spread, sharp = np.zeros((1, 4)), 9 * np.eye(4)[:1]
    divergence = create("kl-bregman", dim=4)
    keys = np.concatenate((spread, sharp))[None, None]
    seen = divergence.observe(keys[..., :1, :], keys, keys, "log_sum_exp", "weights")
    # KL(p‖p) = 0, so the log-sum-exp is log(1 + e^{−KL}).
    other = rel_entr(softmax(spread[0]), softmax(sharp[0])).sum()
    np.testing.assert_allclose(seen.log_sum_exp[0, 0, 0], np.log1p(np.exp(-other)))
    backwards = divergence.observe(keys[..., 1:, :], keys, keys, "weights").weights[0, 0, 0]
    assert backwards[0] > 2 * seen.weights[0, 0, 0, 1]


def test_no_steps_are_flash(create, rng):
    query, key, value = arrays(rng)
    found = create("natural-gradient", dim=18, heads=3, steps=0).attend(query, key, value)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(6)
    np.testing.assert_allclose(found, softmax(scores, axis=-1) @ value)


def test_steps_lower_the_energy(create, rng):
    from polyattn_info_geometry.reference import natural_gradient

    key = rng.standard_normal((1, 1, 12, 5))
    query = rng.standard_normal((1, 1, 4, 5))
    energies = []
    for steps in range(4):
        mechanism = create("natural-gradient", dim=5, steps=steps, lr=0.3)
        log_sum_exp = np.log(np.exp(_moved(mechanism, query, key) @ key[0, 0].T / 5**0.5).sum(-1))
        moved = _moved(mechanism, query, key)
        energies.append(0.5 * (moved**2).sum(-1) - 5**0.5 * log_sum_exp)
        expected = natural_gradient(query, key, key, config=mechanism.config)
        np.testing.assert_allclose(mechanism.attend(query, key, key), expected)
    assert (np.diff(energies, axis=0) < 0).all()


def _moved(mechanism, query, key):
    """Where a query got to, from the weights: logits up to a constant, by least squares."""
    weights = mechanism.observe(query, key, key, "weights").weights[0, 0]
    logs = np.log(weights)
    logs = logs - logs.mean(-1, keepdims=True)
    centred = key[0, 0] - key[0, 0].mean(0)
    return np.linalg.lstsq(centred, logs.T, rcond=None)[0].T * 5**0.5


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torch(create, rng, name):
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query, key, value = arrays(rng)
    incoming = rng.standard_normal((2, 3, 5, 4))
    extra = {"steps": 2} if name == "natural-gradient" else {"sharpness": 2.0}
    output, pull = create(name, dim=18, heads=3, **extra).attend_vjp(query, key, value)
    q, k, v = (torch.tensor(x, requires_grad=True) for x in (query, key, value))
    if name == "natural-gradient":
        beta, moved = 6**-0.5, q
        for _ in range(2):
            p = torch.softmax(beta * moved @ k.mT, -1)
            mean, square = p @ k, p @ k**2
            bottom = beta**2 * (square - mean**2) + 1
            moved = moved - 0.5 * (moved - mean) / bottom
        scores = beta * moved @ k.mT
    else:
        p, r = torch.softmax(q, -1), torch.softmax(k, -1)
        p, r = p[..., :, None, :], r[..., None, :, :]
        if name == "fisher-rao":
            scores = -4 * torch.arccos((p * r).sqrt().sum(-1))
        else:
            scores = -2 * (p * (p.log() - r.log())).sum(-1)
    theirs = torch.softmax(scores, -1) @ v
    theirs.backward(torch.tensor(incoming))
    np.testing.assert_allclose(output, theirs.detach().numpy(), rtol=1e-9)
    found = pull(incoming)
    for ours, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-7, atol=1e-10)


def test_equal_distributions_have_a_finite_gradient(create):
    x = np.random.default_rng(0).standard_normal((1, 1, 6, 8))
    output, pull = create("fisher-rao", dim=8).attend_vjp(x, x, x)
    found = pull(np.ones_like(output))
    assert np.isfinite(found.query).all()
    assert abs(found.query).max() < 10


@pytest.mark.parametrize("size", [1, 2, 30])
def test_the_vectorised_arccosine(size):
    import numba

    from polyattn_info_geometry.kernels import angle

    call = numba.njit(lambda x: angle(x))
    for dtype, ulps in ((np.float64, 4), (np.float32, 4)):
        points = np.cos(np.linspace(0, np.pi, 40 * size, dtype=dtype)).astype(dtype)
        found = np.array([call(dtype(x)) for x in points])
        exact = np.arccos(np.clip(points.astype(np.float64), -1, 1))
        assert abs(found - exact).max() <= ulps * np.finfo(dtype).eps * np.pi
        near = found[exact < 0.1]
        np.testing.assert_allclose(near, exact[exact < 0.1], rtol=10 * np.finfo(dtype).eps)
