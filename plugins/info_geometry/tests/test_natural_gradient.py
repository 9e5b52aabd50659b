"""Natural-gradient steps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from polyattn_core.errors import DTypeError, ShapeError
from polyattn_info_geometry import FisherConfig, NaturalGradient, NaturalGradientConfig


def natural(**options):
    return NaturalGradient(NaturalGradientConfig(**options))


@pytest.mark.parametrize("size", [2, 63, 65])
def test_step_against_the_pseudo_inverse(rng, size):
    logits, gradient = rng.standard_normal((2, 4, 3, size))
    before = logits.copy(), gradient.copy()
    found = natural(lr=0.3).step_logits(logits, gradient)
    for index in np.ndindex(4, 3):
        p = softmax(logits[index])
        f = np.diag(p) - np.outer(p, p)
        expected = logits[index] - 0.3 * np.linalg.pinv(f, rcond=1e-9) @ gradient[index]
        np.testing.assert_allclose(found[index], expected, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(gradient, before[1])


def test_every_option_changes_the_step(rng):
    logits, gradient = rng.standard_normal((2, 9))
    gradient -= gradient.mean()
    p = softmax(logits)
    diagonal = natural(use_diagonal=True).step_logits(logits, gradient)
    np.testing.assert_allclose(diagonal, logits - 0.1 * gradient / (p * (1 - p)))
    damped = natural(damping=0.5).step_logits(logits, gradient)
    f = np.diag(p) - np.outer(p, p) + 0.5 * np.eye(9)
    np.testing.assert_allclose(damped, logits - 0.1 * np.linalg.solve(f, gradient))
    inherited = natural(fisher=FisherConfig(damping=0.5)).step_logits(logits, gradient)
    np.testing.assert_array_equal(inherited, damped)
    exact = natural().step_logits(logits, gradient)
    solved = natural(solver="cg", fisher=FisherConfig(cg_tol=1e-12)).step_logits(logits, gradient)
    np.testing.assert_allclose(solved, exact, rtol=1e-7)
    stopped = natural(solver="cg", fisher=FisherConfig(max_cg_iters=1)).step_logits(
        logits, gradient
    )
    assert abs(stopped - exact).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"solver": "cg"}, {"use_diagonal": True}])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-30])
def test_tiny_gradients_make_proportional_steps(options, size):
    gradient = np.array([1.0, -2.0, 1.0])
    zero = np.zeros(3)
    step = natural(**options).step_logits(zero, size * gradient)
    whole = natural(**options).step_logits(zero, gradient)
    np.testing.assert_allclose(step / size, whole, rtol=1e-5)
    assert abs(step).min() > 0


def test_direction_is_the_step(rng):
    logits, gradient = rng.standard_normal((2, 5, 4))
    for options in ({}, {"use_diagonal": True}, {"damping": 0.1}):
        optimiser = natural(lr=0.25, **options)
        step = logits - 0.25 * optimiser.direction(softmax(logits, axis=-1), gradient)
        np.testing.assert_allclose(optimiser.step_logits(logits, gradient), step)


def test_float32_and_float16(rng):
    logits, gradient = rng.standard_normal((2, 3, 40))
    exact = natural().step_logits(logits, gradient)
    single = natural().step_logits(logits.astype(np.float32), gradient.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=1e-4, atol=1e-4)
    # Half precision is computed in float32, and steps are handed back in it.
    half = natural().step_logits(logits.astype(np.float16), gradient.astype(np.float16))
    np.testing.assert_allclose(half, exact, rtol=2e-2, atol=0.5)


def test_training_converges_faster_than_plain_gradients(rng):
    target = softmax(3 * rng.standard_normal((8, 50)), axis=-1)
    theirs = ours = np.zeros_like(target)
    optimiser = natural(lr=0.3, damping=0.01)
    for _ in range(60):
        ours = optimiser.step_logits(ours, softmax(ours, axis=-1) - target)
        theirs = theirs - 0.3 * (softmax(theirs, axis=-1) - target)
    loss, plain = (rel_entr(target, softmax(x, axis=-1)).sum(-1) for x in (ours, theirs))
    assert (loss < 0.02).all()
    assert (loss < 0.1 * plain).all()


def test_errors():
    with pytest.raises(ShapeError, match="gradient"):
        natural().step_logits(np.zeros(3), np.zeros(4))
    with pytest.raises(DTypeError, match="logits"):
        natural().step_logits(np.zeros(3, int), np.zeros(3, np.float32))
    for bad in ({"lr": 0}, {"damping": -1}, {"solver": "lu"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            natural(**bad)
