"""Functions of an operator as polynomials: coefficients, and their action forward and backward.

No function of the graph is ever a matrix: f(L) x takes as many products L x as the polynomial has
degrees, and each of these is one pass over the edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError

from .operators import Operator, Product

_MOST = 1 << 15  # terms of a series

Tape = list[tuple[Array, Array]]
"""What a forward pass leaves for the backward pass."""


class Filter(Protocol):
    """A function of an operator, on (batch, heads, keys, width)."""

    def apply(self, operator: Operator, x: Array, tape: Tape | None = None) -> Array:
        """f(L) x; the tape receives what `pull` needs."""

    def pull(
        self, operator: Operator, tape: Tape, gradient: Array
    ) -> tuple[Array, list[Product], Array]:
        """Gradients by x, by L as products, and by the coefficients (terms, heads)."""


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Σ cₘ Tₘ(step·L − 1) in Chebyshev polynomials, or Σ cₘ (1 − step·L)ᵐ.

    `coefficients` (terms, heads, 1, 1) may differ between heads.
    """

    coefficients: Array
    step: float
    chebyshev: bool = True

    def __len__(self) -> int:
        return len(self.coefficients)

    def _next(self, m: int, x: Array, l_x: Array, before: Array | None) -> Array:
        found: Array = self.step * l_x
        found -= x
        if not self.chebyshev:
            return np.negative(found, out=found)
        if before is not None:
            found *= 2
            found -= before
        return found

    def apply(self, operator: Operator, x: Array, tape: Tape | None = None) -> Array:
        """p(L) x; the tape receives what `pull` needs."""
        c = self.coefficients.astype(x.dtype)
        out = c[0] * x
        before: Array | None = None
        for m in range(len(self) - 1):
            l_x = operator.apply(x)
            if tape is not None:
                tape.append((x, l_x))
            x, before = self._next(m, x, l_x, before), x
            out += c[m + 1] * x
        if tape is not None:
            tape.append((x, x))
        result: Array = out
        return result

    def pull(
        self, operator: Operator, tape: Tape, gradient: Array
    ) -> tuple[Array, list[Product], Array]:
        """Gradients by x, by L as products, and by the coefficients (terms, heads)."""
        c = self.coefficients.astype(gradient.dtype)
        last = len(self) - 1
        products: list[Product] = []
        one, two = np.zeros_like(gradient), np.zeros_like(gradient)
        d_coefficients = np.zeros((len(self), gradient.shape[1]), gradient.dtype)
        for m in range(last, -1, -1):
            x, l_x = tape[m]
            d_coefficients[m] = np.einsum("bhnd,bhnd->h", gradient, x)
            found = c[m] * gradient
            if m < last:
                # How the next term depends on this one: by ± factor · (step L − 1).
                factor = -1 if not self.chebyshev else 1 if m == 0 else 2
                lt_y = operator.apply_transposed(one)
                found = found + factor * (self.step * lt_y - one)
                scale = factor * self.step
                products.append(Product(x, l_x, scale * one, scale * lt_y))
                if self.chebyshev and m + 1 < last:
                    found = found - two
            one, two = found, one
        return one, products, d_coefficients


def expand(
    function: Callable[[Array], Array], bound: float, tolerance: float, option: str
) -> Polynomial:
    """The Chebyshev series of a function on [0, bound], cut where the rest is below a tolerance.

    `function` maps eigenvalues (points,) to (points,) or (points, heads). `option` is named where
    the series would be too long.
    """
    bound = max(bound, float(np.finfo(np.float64).tiny))
    points = 64
    while points <= _MOST:
        angle = np.pi * (np.arange(points) + 0.5) / points
        values = np.asarray(function(0.5 * bound * (1 + np.cos(angle))), np.float64)
        values = values.reshape(points, -1)
        # A cosine transform by way of a real Fourier transform of the mirrored values.
        spectrum = np.fft.rfft(np.concatenate([values, values[::-1]]), axis=0)[:points]
        shift = np.exp(-0.5j * np.pi * np.arange(points) / points)[:, None]
        c = (spectrum * shift).real / points
        c[0] /= 2
        tail = np.abs(c[::-1]).max(axis=1).cumsum()[::-1]
        floor = max(tolerance, 4e-16 * points * np.abs(values).max())
        needed = int((tail > floor).sum())
        if needed <= points // 2:
            return Polynomial(c[: max(needed, 1), :, None, None], 2 / bound)
        points *= 2
    raise ArgumentError(
        option, f"a filter of more than {_MOST // 2} terms (eigenvalues reach {bound:.3g})",
        "a smaller value, or a larger tolerance",
    )  # fmt: skip


def euler(t: float, steps: int, bound: float) -> Polynomial:
    """(1 − t/steps · L)^steps: explicit Euler steps of dx/dt = −L x."""
    if t * bound > 2 * steps:
        raise ArgumentError(
            "num_steps", steps,
            f"at least {math.ceil(t * bound / 2)}, as explicit Euler is unstable for steps over "
            f"2/{bound:.4g} here; or none, for the expansion that has no such bound",
        )  # fmt: skip
    c = np.zeros((steps + 1, 1, 1, 1))
    c[-1] = 1
    return Polynomial(c, t / steps, chebyshev=False)


def uniformised(t: float, bound: float, tolerance: float) -> Polynomial:
    """exp(−t L) of a generator −L as Σ Poisson(m; t·bound) (1 − L/bound)ᵐ: nothing is negative."""
    mean = t * bound
    if mean > _MOST:
        raise ArgumentError("t", t, f"at most {_MOST / bound:.3g}, as rates reach {bound:.3g}")
    if mean == 0:
        return Polynomial(np.ones((1, 1, 1, 1)), 0.0, chebyshev=False)
    m = np.arange(int(mean + 40 + 12 * math.sqrt(mean)))
    log_factorial = np.concatenate([[0], np.cumsum(np.log(m[1:]))])
    c = np.exp(m * math.log(mean) - mean - log_factorial)
    c = c[: int((c[::-1].cumsum()[::-1] > tolerance).sum())]
    return Polynomial((c / c.sum())[:, None, None, None], 1 / bound, chebyshev=False)
