"""α (α + (1 − α) L)⁻¹ by conjugate gradients, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError

from .filters import Tape
from .operators import Operator, Product, Transposed

_LEAST_RATE = 1 / 4096


@dataclass(frozen=True, slots=True)
class Resolvent:
    """y = α (α + (1 − α) L)⁻¹ x, where no column of a head is off by more than tolerance · ‖x‖.

    The residual of y bounds its error: in the norm of L's own inner product, and for walks in the
    largest number as well. Conjugate gradients go on until both are small. They take no more
    products than the best polynomial for the eigenvalues that there are, which is few for keys that
    lie far apart or in clusters, and O(log(1/tolerance)/√α) at the most. No column depends on the
    others.
    """

    alpha: float
    tolerance: float

    def apply(self, operator: Operator, x: Array, tape: Tape | None = None) -> Array:
        """The filtered x; the tape receives what `pull` needs."""
        y = self._solved(operator, x)
        if tape is not None:
            tape.append((x, y))
        return y

    def pull(
        self, operator: Operator, tape: Tape, gradient: Array
    ) -> tuple[Array, list[Product], Array]:
        """Gradients by x and by L as products; there are no coefficients."""
        ((x, y),) = tape
        z = self._solved(Transposed(operator), gradient)
        # From M y = α x and Mᵀ z = α g with M = α + (1 − α) L: dL enters as −(1 − α)/α ⟨z, dL y⟩,
        # and L y = α (x − y)/(1 − α), so that neither takes another product.
        products = []
        if self.alpha < 1:
            ratio = (1 - self.alpha) / self.alpha
            products.append(Product(y, (x - y) / ratio, -ratio * z, z - gradient))
        return z, products, np.zeros((0, gradient.shape[1]), gradient.dtype)

    def _solved(self, operator: Operator, x: Array) -> Array:
        alpha, measure = self.alpha, operator.measure
        if alpha == 1 or operator.reach == 0:
            return x.copy()
        least = float(np.finfo(x.dtype).eps) * operator.reach
        if alpha < least:
            raise ArgumentError(
                "alpha", alpha, f"at least {least:.2g}, as eigenvalues reach {operator.reach:.3g} "
                f"and {x.dtype.name} loses what is smaller beside them",
            )  # fmt: skip

        def inner(a: Array, b: Array) -> Array:
            weighed = a if measure is None else measure * a
            found: Array = np.einsum("bhnd,bhnd->bhd", weighed, b)[:, :, None]
            return found

        # What is NaN stays NaN, in its own column.
        with np.errstate(invalid="ignore", divide="ignore"):
            largest = np.abs(x).max(axis=2, keepdims=True, initial=0)
            scale = np.where(largest > 0, largest, 1).astype(x.dtype)  # so that squares stay finite
            residual: Array = x / scale
            solution = np.zeros_like(residual)
            direction = residual.copy()
            square = inner(residual, residual)
            tolerance = self._reachable(x)
            enough = tolerance**2 * square
            settled = square == 0
            for _ in range(self._most(operator, tolerance)):
                image = operator.apply(direction)
                image *= 1 - alpha
                image += alpha * direction
                step = square / inner(direction, image)
                step[settled] = 0
                solution += step * direction
                residual -= step * image
                before, square = square, inner(residual, residual)
                roughest = np.abs(residual).max(axis=2, keepdims=True, initial=0)
                settled |= (square <= enough) & (roughest <= tolerance)
                if (settled | np.isnan(square)).all():
                    break
                np.divide(square, before, out=step, where=before > 0)
                direction *= step
                direction += residual
            solution *= alpha * scale
        return solution

    def _reachable(self, x: Array) -> float:
        """The tolerance, or what rounding leaves anyway."""
        return max(self.tolerance, float(np.finfo(x.dtype).eps))

    def _most(self, operator: Operator, tolerance: float) -> int:
        """Iterations that leave no number over the tolerance, but for rounding."""
        root = math.sqrt((self.alpha + (1 - self.alpha) * operator.reach) / self.alpha)
        mass = float(operator.graph.shape[2])
        if operator.measure is not None:
            mass *= float(operator.measure.max() / operator.measure.min())
        rate = max(math.log1p(2 / (root - 1)), _LEAST_RATE)
        return math.ceil(math.log(2 * root * math.sqrt(max(mass, 1.0)) / tolerance) / rate) + 1
