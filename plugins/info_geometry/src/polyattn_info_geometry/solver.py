"""Conjugate gradients for a symmetric positive semi-definite operator, many systems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Solution:
    """What a solve found, and how well."""

    x: Array
    """(…, n), in the dtype of the right-hand side."""
    residual: Array
    """(…,): ‖b − A x‖ / ‖b‖ as tracked by the recurrence; 0 where b is 0."""
    iterations: int
    """Iterations of the slowest system."""

    def converged(self, tolerance: float) -> bool:
        """Are all residuals within a tolerance?"""
        return bool((self.residual <= tolerance).all())


def conjugate_gradient(
    operator: Callable[[Array], Array],
    right: Array,
    *,
    max_iters: int = 50,
    tolerance: float = 1e-6,
    damping: float = 0.0,
) -> Solution:
    """Solve (A + damping·I) x = b for each vector along the last axis.

    Parameters
    ----------
    operator
        x ↦ A x along the last axis of an array shaped like `right`; symmetric, positive
        semi-definite. Where it is singular, b must lie in its range.
    right
        b, (…, n). Each system stops at its own relative residual, so that however small b is, its
        solution is not taken for 0.
    max_iters, tolerance
        Most iterations, and the relative residual at which a system is solved.
    damping
        Added to the operator.

    Returns
    -------
    A `Solution`. It is for the caller to look at `residual`: running out of iterations is no error.

    Examples
    --------
    >>> import numpy as np
    >>> matrix = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> found = conjugate_gradient(lambda x: x @ matrix, np.array([[1e-9, 2e-9]]))
    >>> np.allclose(found.x @ matrix * 1e9, [[1, 2]]), found.iterations
    (True, 2)
    """
    if max_iters < 1:
        raise ArgumentError("max_iters", max_iters, "at least 1")
    if damping < 0:
        raise ArgumentError("damping", damping, "0 or more")
    b = np.asarray(right)
    size = np.abs(b).max(axis=-1, keepdims=True, initial=0)
    # In units of its largest entry, so that squares of tiny numbers do not vanish.
    r = np.divide(b, size, out=np.zeros_like(b), where=size > 0)
    x, p = np.zeros_like(r), r.copy()
    rr = _dot(r, r)
    goal = tolerance**2 * rr
    whole = np.where(rr > 0, rr, 1)
    count = 0
    while count < max_iters and (rr > goal).any():
        ap = operator(p) + damping * p
        curvature = _dot(p, ap)
        active = (rr > goal) & (curvature > 0)
        if not active.any():
            break
        step = np.divide(rr, curvature, out=np.zeros_like(rr), where=active)
        x += step * p
        r -= step * ap
        after = _dot(r, r)
        ratio = np.divide(after, rr, out=np.zeros_like(rr), where=active)
        p = np.where(active, r + ratio * p, p)
        rr = np.where(active, after, rr)
        count += 1
    return Solution(x * size, np.sqrt(rr / whole)[..., 0], count)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("...i,...i->...", a, b))[..., None]
