"""What the geometry report measures with this family."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core.arrays import as_array

from .divergences import DiagonalGaussian, KLDivergence

_ROUNDING = 1e-15
"""Less than this is what float64 leaves of nothing."""


def ib_kl(query: Any, key: Any, value: Any) -> float:
    """KL of the keys' distribution from the prior of a bottleneck, in nats a coordinate.

    The keys (…, n, d) of each leading index are taken for samples of a diagonal Gaussian, with
    their own means and variances; the result is the mean of KL(N(μ, σ²)‖N(0, 1))/d. It is about 0
    for standard normal keys, and grows with keys that are shifted, too large or collapsed. O(n d).
    Keys that are not finite give NaN. Vectors that were standardised coordinate by coordinate give
    0, whatever their structure: the metric is one of scale and place, for keys as a model makes
    them.

    >>> keys = np.random.default_rng(0).standard_normal((1000, 8))
    >>> ib_kl(keys, keys, keys) < 0.01 < 0.5 < ib_kl(keys, 1 + keys, keys)
    True
    """
    keys = as_array(key, "key").astype(np.float64)
    variance = np.maximum(keys.var(axis=-2), np.finfo(np.float64).tiny)
    gaussian = DiagonalGaussian(keys.mean(axis=-2), np.log(variance))
    found = float(KLDivergence.gaussian_to_unit(gaussian).mean() / keys.shape[-1])
    return 0.0 if found < _ROUNDING else found
