"""The Fisher information metric of the categorical distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, DTypeError, ShapeError

from .config import FisherConfig
from .solver import Solution, conjugate_gradient

_TASK = 1 << 14  # numbers, about which a thread takes at a time


class FisherMetric:
    """The Fisher metric of a soft-max: F = diag(p) − p pᵀ, never as a matrix.

    F is the second derivative of KL(p‖p′) by the logits of p′, at p′ = p. Its null space are the
    constant vectors, which change no soft-max. On the others

        F⁺ = P diag(1/p) P,   P = I − 1 1ᵀ/n

    exactly, so that solving costs as much as multiplying.

    All methods take any leading axes, which broadcast, and O(n) time and memory for each vector.

    Parameters
    ----------
    config
        `FisherConfig`; its defaults where nothing is passed.

    References
    ----------
    Amari, Natural gradient works efficiently in learning, Neural Computation 10 (1998). Martens,
    New insights and perspectives on the natural gradient method, arXiv:1412.1193.

    Examples
    --------
    >>> import numpy as np
    >>> from polyattn_info_geometry import FisherMetric
    >>> fisher = FisherMetric()
    >>> p = np.array([0.5, 0.25, 0.25])
    >>> v = np.array([1.0, -1.0, 0.0])
    >>> fisher.apply(p, v)
    array([ 0.375 , -0.3125, -0.0625])
    >>> fisher.solve(p, fisher.apply(p, v))
    array([ 1., -1.,  0.])
    """

    def __init__(self, config: FisherConfig | None = None) -> None:
        self.config = FisherConfig() if config is None else config

    def apply(self, probs: Any, vector: Any) -> Array:
        """F v = p ⊙ v − p (p·v)."""
        from .kernels import APPLY

        p, v = _pair(probs, vector, "vector")
        return rowwise(APPLY, p, v)

    def solve(self, probs: Any, vector: Any, *, damping: float | None = None) -> Array:
        """F⁺ v, or (F + λI)⁻¹ v with damping λ > 0; exact, in O(n).

        Probabilities below `eps` count as `eps` where they are divided by, which they are without
        damping only. F⁺ ignores the mean of v, which lies in the null space.
        """
        from .kernels import SOLVE

        p, v = _pair(probs, vector, "vector")
        return rowwise(SOLVE, p, v, damping=self._damping(damping), eps=self.config.eps)

    def solve_diagonal(self, probs: Any, vector: Any, *, damping: float | None = None) -> Array:
        """V over the diagonal of F + λI, p (1 − p) + λ, of which `eps` is the least."""
        from .kernels import DIAGONAL

        p, v = _pair(probs, vector, "vector")
        return rowwise(DIAGONAL, p, v, damping=self._damping(damping), eps=self.config.eps)

    def solve_cg(self, probs: Any, vector: Any, *, damping: float | None = None) -> Solution:
        """`solve` by conjugate gradients, from products with F alone; says how far it came.

        The closed form is faster and exact: this is for comparison, and for p with entries of 0,
        on which F⁺ is 0 where the closed form divides by `eps`.
        """
        p, v = _pair(probs, vector, "vector")
        # Without damping only what lies in the range of F can be reached.
        reached = np.where(p > 0, v, 0)
        support = np.count_nonzero(p > 0, axis=-1, keepdims=True)
        centred = np.where(p > 0, v - reached.sum(axis=-1, keepdims=True) / support, 0)
        right = v if self._damping(damping) else centred.astype(v.dtype, copy=False)
        return conjugate_gradient(
            lambda x: self.apply(p, x), right, max_iters=self.config.max_cg_iters,
            tolerance=self.config.cg_tol, damping=self._damping(damping),
        )  # fmt: skip

    def solve_operator(
        self, operator: Callable[[Array], Array], vector: Any, *, damping: float | None = None
    ) -> Solution:
        """(A + λI)⁻¹ v for any symmetric positive semi-definite A, of which products are given."""
        return conjugate_gradient(
            operator, as_array(vector, "vector"), max_iters=self.config.max_cg_iters,
            tolerance=self.config.cg_tol, damping=self._damping(damping),
        )  # fmt: skip

    def inner(self, probs: Any, first: Any, second: Any) -> Array:
        """The inner product uᵀ F v of two directions in logits."""
        p, v = _pair(probs, second, "second")
        u = as_array(first, "first")
        return np.asarray(np.einsum("...i,...i->...", u, self.apply(p, v)))

    def distance(self, probs: Any, others: Any) -> Array:
        """The Fisher–Rao distance 2 arccos Σ √(p r), from 0 to π.

        Computed as 4 arcsin(‖√p − √r‖ / 2), which keeps its digits where p and r are close: there
        Σ √(p r) rounds to 1. The difference of roots is taken as (p − r) / (√p + √r).
        """
        p, r = _pair(probs, others, "others")
        check_distributions(p, "probs")
        check_distributions(r, "others")
        with np.errstate(invalid="ignore"):
            bottom = np.sqrt(p) + np.sqrt(r)
            apart = np.divide(p - r, bottom, out=np.zeros_like(bottom), where=bottom > 0)
        # In units of the largest, so that squares of tiny numbers do not vanish.
        size = np.abs(apart).max(axis=-1, keepdims=True)
        unit = np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)
        chord = size[..., 0] * np.sqrt(np.einsum("...i,...i->...", unit, unit))
        # The distance is at most π, where the chord is √2.
        return np.asarray(4 * np.arcsin(np.minimum(chord / 2, np.sqrt(0.5))))

    def _damping(self, damping: float | None) -> float:
        value = self.config.damping if damping is None else float(damping)
        if not 0 <= value < np.inf:
            raise ArgumentError("damping", damping, "a finite number of at least 0")
        return value


def softmax(logits: Any) -> Array:
    """Soft-max along the last axis."""
    x = as_array(logits, "logits")
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def check_distributions(probs: Array, argument: str) -> None:
    """Vectors along the last axis are not negative and sum to 1, within rounding."""
    negative = probs.min(axis=-1) < 0
    _check_sums(np.where(negative, -np.inf, probs.sum(axis=-1)), argument)


def _check_sums(total: Array, argument: str) -> None:
    tolerance = 1e-3 if total.dtype.itemsize < 8 else 1e-6
    if np.isneginf(total).any():
        raise ArgumentError(argument, "negative numbers", "probabilities of at least 0")
    if not (np.abs(total - 1) <= tolerance).all():
        worst = float(total.flat[np.argmax(np.abs(total - 1))])
        raise ArgumentError(argument, f"a sum of {worst:g}", "probabilities that sum to 1")


def _pair(probs: Any, vector: Any, argument: str) -> tuple[Array, Array]:
    p, v = matched(probs, vector, "probs", argument)
    return p, v


def matched(first: Any, second: Any, name: str, other: str) -> tuple[Array, Array]:
    """Two arrays (…, n) of one dtype that is computed in, broadcast to one shape."""
    a, b = as_array(first, name), as_array(second, other)
    if a.ndim < 1 or a.shape[-1] == 0:
        raise ShapeError(name, a.shape, "at least 1 axis, the last not empty")
    if b.ndim < 1 or b.shape[-1] != a.shape[-1]:
        raise ShapeError(other, b.shape, f"a last axis of {a.shape[-1]} like {name}")
    if a.dtype != b.dtype:
        raise DTypeError(f"{name}, {other}", f"{a.dtype}, {b.dtype}", "one dtype for both")
    dtype = compute_dtype(a.dtype, name)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ShapeError(other, b.shape, f"leading axes that broadcast with {a.shape}") from None
    return (
        np.broadcast_to(a.astype(dtype, copy=False), shape),
        np.broadcast_to(b.astype(dtype, copy=False), shape),
    )


def rowwise(
    kind: int, first: Array, second: Array, *, from_logits: bool = False, damping: float = 0.0,
    eps: float = 1e-8, factor: float = 1.0,
) -> Array:  # fmt: skip
    """Run the kernel over all rows, in threads; see `kernels`."""
    from polyattn_core.simd import threads

    from .kernels import fisher_kernel

    size, dtype = first.shape[-1], first.dtype
    flat = [np.ascontiguousarray(x).reshape(-1, size) for x in (first, second)]
    out, sums = np.empty_like(flat[1]), np.empty(len(flat[1]), dtype)
    rows = max(1, _TASK // size)
    numbers = (np.array([x], dtype) for x in (damping, eps, factor))
    tasks = -(-len(out) // rows)
    threads.run(
        fisher_kernel(dtype.name), (kind, from_logits, *flat, *numbers, rows, out, sums), tasks,
        threads.limit(),
    )  # fmt: skip
    _check_sums(sums, "probs")
    return out.reshape(first.shape)
