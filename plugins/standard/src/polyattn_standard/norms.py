"""RMSNorm inside of layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polyattn_core.arrays import Array

NormPullback = Callable[[Array], tuple[Array, Array]]
"""From a gradient to those of the input and of the weight."""


def rms_norm(array: Array, weight: Array, epsilon: float) -> tuple[Array, NormPullback]:
    """weight ⊙ x / √(mean(x²) + ε) along the last axis (arXiv:1910.07467), and its pullback."""
    size = array.shape[-1]
    # Tokens that are hidden may hold anything; a warning about them would mislead.
    with np.errstate(invalid="ignore", over="ignore"):
        square = np.einsum("...d,...d->...", array, array)[..., None] / size
        factor = 1 / np.sqrt(square + epsilon)
        unit = np.multiply(array, factor, order="C")

    def pullback(gradient: Array) -> tuple[Array, Array]:
        # Hidden tokens have no gradient, and 0 · NaN must not make them one.
        live = np.any(gradient, axis=-1, keepdims=True)
        seen = np.where(live, unit, 0)
        by_weight = np.einsum("nd,nd->d", gradient.reshape(-1, size), seen.reshape(-1, size))
        weighted = gradient * weight
        along = np.einsum("...d,...d->...", weighted, seen)[..., None] / size
        return np.asarray(np.where(live, factor, 0) * (weighted - along * seen)), by_weight

    return unit * weight, pullback
