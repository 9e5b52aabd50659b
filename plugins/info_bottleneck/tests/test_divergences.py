"""Divergences and their gradients against SciPy and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_info_bottleneck import DiagonalGaussian, KLDivergence


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: make oracles")


def gaussian(rng, *shape, spread=1.0):
    return DiagonalGaussian(rng.standard_normal(shape), spread * rng.standard_normal(shape))


def test_categorical(rng):
    p, r = softmax(rng.standard_normal((2, 4, 3, 9)), axis=-1)
    np.testing.assert_allclose(KLDivergence.categorical(p, r), rel_entr(p, r).sum(-1))
    expected = jensenshannon(p, r, axis=-1) ** 2
    np.testing.assert_allclose(KLDivergence.jensen_shannon(p, r), expected)
    assert KLDivergence.categorical([1.0, 0.0], [0.5, 0.5]) == np.log(2)
    assert KLDivergence.categorical([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert KLDivergence.categorical([0.0, 1.0], [0.0, 1.0]) == 0


@pytest.mark.oracle
def test_gaussians_of_torch(rng, torch):
    one, two = gaussian(rng, 5, 7), gaussian(rng, 5, 7)

    def normal(g):
        mean, log_var = (torch.tensor(x, requires_grad=True) for x in (g.mean, g.log_var))
        return mean, log_var, torch.distributions.Normal(mean, (log_var / 2).exp())

    mean, log_var, first = normal(one)
    unit = torch.distributions.Normal(torch.zeros(7).double(), torch.ones(7).double())
    kl = torch.distributions.kl_divergence(first, unit).sum(-1)
    np.testing.assert_allclose(KLDivergence.gaussian_to_unit(one), kl.detach().numpy())
    kl.sum().backward()
    found = KLDivergence.gaussian_to_unit_gradient(one)
    np.testing.assert_allclose(found.mean, mean.grad)
    np.testing.assert_allclose(found.log_var, log_var.grad)
    (mean, log_var, first), (other_mean, other_log_var, second) = normal(one), normal(two)
    kl = torch.distributions.kl_divergence(first, second).sum(-1)
    np.testing.assert_allclose(KLDivergence.gaussian_to_gaussian(one, two), kl.detach().numpy())
    kl.sum().backward()
    for ours, theirs in zip(
        KLDivergence.gaussian_to_gaussian_gradient(one, two),
        ((mean, log_var), (other_mean, other_log_var)),
        strict=True,
    ):
        np.testing.assert_allclose(ours.mean, theirs[0].grad, atol=1e-12)
        np.testing.assert_allclose(ours.log_var, theirs[1].grad, atol=1e-12)


@pytest.mark.oracle
def test_gradients_of_categorical_divergences(rng, torch):
    p, r = softmax(rng.standard_normal((2, 3, 6)), axis=-1)
    a, b = (torch.tensor(x, requires_grad=True) for x in (p, r))
    (a * (a / b).log()).sum().backward()
    ours = KLDivergence.categorical_gradient(p, r)
    for mine, tensor in zip(ours, (a, b), strict=True):
        np.testing.assert_allclose(mine, tensor.grad)
        tensor.grad = None
    m = (a + b) / 2
    ((a * (a / m).log()).sum() / 2 + (b * (b / m).log()).sum() / 2).backward()
    for mine, tensor in zip(KLDivergence.jensen_shannon_gradient(p, r), (a, b), strict=True):
        np.testing.assert_allclose(mine, tensor.grad)


@pytest.mark.parametrize("log_var", [-1e3, -20.5, -3.0, 3.0, 20.5, 1e3])
def test_one_clamping_rule(log_var):
    """Loss, sample and gradients all see the clamped value."""
    here = DiagonalGaussian([0.3], [log_var])
    clamped = DiagonalGaussian([0.3], [np.clip(log_var, -20, 20)])
    assert KLDivergence.gaussian_to_unit(here) == KLDivergence.gaussian_to_unit(clamped)
    np.testing.assert_array_equal(here.sample([0.7]), clamped.sample([0.7]))
    inside = abs(log_var) <= 20
    for gradient in (
        KLDivergence.gaussian_to_unit_gradient(here),
        KLDivergence.gaussian_to_gaussian_gradient(here, DiagonalGaussian([0.0], [0.1]))[0],
        here.sample_pullback([0.7], [1.0]),
    ):
        assert (gradient.log_var[0] != 0) == inside
        assert np.isfinite(gradient.log_var).all()


def test_samples(rng):
    g = DiagonalGaussian(np.array([1.0, -2.0]), np.log([4.0, 0.25]))
    drawn = np.array([g.draw(rng) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(0), g.mean, atol=0.05)
    np.testing.assert_allclose(drawn.var(0), [4, 0.25], rtol=0.05)
    noise, step = rng.standard_normal(2), 1e-6
    found = g.sample_pullback(noise, np.array([1.0, 3.0]))
    for i in range(2):
        moved = DiagonalGaussian(g.mean, g.log_var + step * np.eye(2)[i])
        difference = (moved.sample(noise) - g.sample(noise)) @ [1.0, 3.0] / step
        np.testing.assert_allclose(found.log_var[i], difference, rtol=1e-5)


def test_kl_near_0_keeps_its_digits():
    g = DiagonalGaussian([0.0], [1e-6])
    np.testing.assert_allclose(KLDivergence.gaussian_to_unit(g), 2.5e-13, rtol=1e-3)


def test_errors():
    with pytest.raises(ShapeError, match="log_var"):
        DiagonalGaussian(np.zeros(3), np.zeros(4))
    with pytest.raises(ShapeError, match="epsilon"):
        DiagonalGaussian(np.zeros(3), np.zeros(3)).sample(np.zeros(2))
    with pytest.raises(ArgumentError, match="rng"):
        DiagonalGaussian(np.zeros(3), np.zeros(3)).draw(3)
    for bad in ([0.5, 0.6], [-0.5, 1.5], [np.nan, 1.0]):
        with pytest.raises(ArgumentError, match="probs"):
            KLDivergence.categorical(bad, [0.5, 0.5])
        with pytest.raises(ArgumentError, match="others"):
            KLDivergence.jensen_shannon([0.5, 0.5], bad)
