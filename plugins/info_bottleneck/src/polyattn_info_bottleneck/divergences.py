"""Divergences between Gaussians and between categorical distributions, with their gradients.

One rule bounds logarithms of variances everywhere, in losses, samples and gradients: they are
clamped to [−20, 20], and beyond these the gradient is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ShapeError

LOG_VAR_BOUND = 20.0


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """Gaussians with independent coordinates, along the last axis of two arrays.

    >>> DiagonalGaussian(mean=[0.0, 1.0], log_var=[0.0, 0.0]).sample([0.5, 0.5])
    array([0.5, 1.5])
    """

    mean: Any
    """(…, n)."""
    log_var: Any
    """(…, n): logarithms of the variances."""

    def __post_init__(self) -> None:
        mean, log_var = as_array(self.mean, "mean"), as_array(self.log_var, "log_var")
        if mean.ndim < 1 or mean.shape != log_var.shape:
            raise ShapeError("log_var", log_var.shape, f"the shape of mean, {mean.shape}")
        for name, array in (("mean", mean), ("log_var", log_var)):
            object.__setattr__(
                self, name, array.astype(compute_dtype(array.dtype, name), copy=False)
            )

    @property
    def clamped(self) -> Array:
        """`log_var` as it is computed with."""
        return np.asarray(np.clip(self.log_var, -LOG_VAR_BOUND, LOG_VAR_BOUND))

    @property
    def inside(self) -> Array:
        """Where `log_var` is within its bounds, and so has a gradient."""
        return np.asarray(np.abs(self.log_var) <= LOG_VAR_BOUND)

    def sample(self, epsilon: Any) -> Array:
        """Mean + e^{log_var/2} ε, for standard normal ε that broadcasts to (…, n)."""
        noise = np.asarray(epsilon, self.mean.dtype)
        try:
            shape = np.broadcast_shapes(noise.shape, self.mean.shape)
        except ValueError:
            shape = ()
        if not shape or shape[-1] != self.mean.shape[-1]:
            wanted = f"a shape that broadcasts with {self.mean.shape}"
            raise ShapeError("epsilon", noise.shape, wanted)
        return np.asarray(self.mean + np.exp(self.clamped / 2) * noise)

    def draw(self, rng: np.random.Generator) -> Array:
        """A sample from a generator's noise."""
        if not isinstance(rng, np.random.Generator):
            raise ArgumentError("rng", rng, "a numpy.random.Generator")
        return self.sample(rng.standard_normal(self.mean.shape))

    def sample_pullback(self, epsilon: Any, gradient: Any) -> DiagonalGaussian:
        """Gradients by mean and log_var, from one by the sample that ε gave."""
        noise = np.asarray(epsilon, self.mean.dtype)
        incoming = np.broadcast_to(gradient, self.mean.shape)
        half = np.exp(self.clamped / 2) * noise / 2
        return DiagonalGaussian(incoming.copy(), np.where(self.inside, half * incoming, 0))


class KLDivergence:
    """Divergences in nats, along the last axis; leading axes broadcast.

    References
    ----------
    Kingma and Welling, Auto-encoding variational Bayes, arXiv:1312.6114, appendix B, for the
    Gaussians.

    Examples
    --------
    >>> import numpy as np
    >>> gaussian = DiagonalGaussian(np.full(64, 0.1), np.full(64, -1.0))
    >>> round(float(KLDivergence.gaussian_to_unit(gaussian)), 4)
    12.0921
    >>> round(float(KLDivergence.jensen_shannon([1.0, 0.0], [0.0, 1.0]) / np.log(2)), 6)
    1.0
    """

    @staticmethod
    def gaussian_to_unit(gaussian: DiagonalGaussian) -> Array:
        """KL(N(μ, σ²)‖N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²), of shape (…,)."""
        log_var = gaussian.clamped
        # expm1(x) − x keeps its digits where σ is near 1.
        return np.asarray((gaussian.mean**2 + (np.expm1(log_var) - log_var)).sum(axis=-1) / 2)

    @staticmethod
    def gaussian_to_unit_gradient(gaussian: DiagonalGaussian) -> DiagonalGaussian:
        """Gradients of `gaussian_to_unit` by mean and log_var."""
        by_log_var = np.where(gaussian.inside, np.expm1(gaussian.clamped) / 2, 0)
        return DiagonalGaussian(gaussian.mean.copy(), by_log_var)

    @staticmethod
    def gaussian_to_gaussian(first: DiagonalGaussian, second: DiagonalGaussian) -> Array:
        """KL(N(μ₁, σ₁²)‖N(μ₂, σ₂²)) = ½ Σ ((μ₁−μ₂)²/σ₂² + σ₁²/σ₂² − 1 − log σ₁²/σ₂²)."""
        ratio = first.clamped - second.clamped
        squared = (first.mean - second.mean) ** 2 * np.exp(-second.clamped)
        return np.asarray((squared + (np.expm1(ratio) - ratio)).sum(axis=-1) / 2)

    @staticmethod
    def gaussian_to_gaussian_gradient(
        first: DiagonalGaussian, second: DiagonalGaussian
    ) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        """Gradients of `gaussian_to_gaussian`, for Gaussians of one shape."""
        precision = np.exp(-second.clamped)
        apart = first.mean - second.mean
        grown = np.expm1(first.clamped - second.clamped) / 2
        by_second = -grown - apart**2 * precision / 2
        return (
            DiagonalGaussian(apart * precision, np.where(first.inside, grown, 0)),
            DiagonalGaussian(-apart * precision, np.where(second.inside, by_second, 0)),
        )

    @staticmethod
    def categorical(probs: Any, others: Any) -> Array:
        """KL(p‖r) = Σ p log p/r; ∞ where r is 0 and p is not."""
        p, r = _distribution(probs, "probs"), _distribution(others, "others")
        return np.asarray(_relative_entropy(p, r).sum(axis=-1))

    @staticmethod
    def categorical_gradient(probs: Any, others: Any) -> tuple[Array, Array]:
        """Gradients of `categorical` by p and r as if all their entries were free.

        That by p is log p/r + 1, 0 where p is 0 (where the derivative is −∞).
        """
        p, r = _distribution(probs, "probs"), _distribution(others, "others")
        with np.errstate(divide="ignore", invalid="ignore"):
            by_p = np.where(p > 0, np.log(p / r) + 1, 0)
            by_r = np.where(p > 0, -p / r, 0)
        return by_p, by_r

    @staticmethod
    def jensen_shannon(probs: Any, others: Any) -> Array:
        """½ KL(p‖m) + ½ KL(r‖m), m = (p + r)/2; symmetric, from 0 to ln 2."""
        p, r = _distribution(probs, "probs"), _distribution(others, "others")
        m = (p + r) / 2
        both = _relative_entropy(p, m) + _relative_entropy(r, m)
        return np.asarray(both.sum(axis=-1) / 2)

    @staticmethod
    def jensen_shannon_gradient(probs: Any, others: Any) -> tuple[Array, Array]:
        """Gradients of `jensen_shannon`: ½ log p/m and ½ log r/m, 0 where an entry is 0."""
        p, r = _distribution(probs, "probs"), _distribution(others, "others")
        m = (p + r) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0, np.log(p / m) / 2, 0), np.where(r > 0, np.log(r / m) / 2, 0)


def _relative_entropy(p: Array, r: Array) -> Array:
    """p log p/r, which is 0 where p is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(p > 0, p * np.log(p / r), np.where(r >= 0, 0.0, np.nan)))


def _distribution(value: Any, argument: str) -> Array:
    array = as_array(value, argument)
    array = array.astype(compute_dtype(array.dtype, argument), copy=False)
    if array.ndim < 1:
        raise ShapeError(argument, array.shape, "at least 1 axis")
    tolerance = 1e-3 if array.dtype.itemsize < 8 else 1e-6
    total = array.sum(axis=-1)
    if not (array >= 0).all() or not (np.abs(total - 1) <= tolerance).all():
        raise ArgumentError(argument, array, "probabilities of at least 0 that sum to 1")
    return array
