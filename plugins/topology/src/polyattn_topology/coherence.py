"""How much keys belong together, from their similarity graph, in linear time.

The graph is complete, with weights w(i, j) = (1 + cos(kᵢ, kⱼ))/2 from 0 to 1. Sums of its weights
over sets of keys are products of sums of unit vectors, so nothing of size keys × keys is needed.
Keys that are 0 or not finite have no direction, and do not count.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ShapeError

from .config import CoherenceMetric


class WindowCoherence:
    """Coherence of keys (…, n, d), from 0 to 1: (…,).

    Where keys are a sequence, `window` divides it into stretches of so many keys; where their order
    means nothing, it is None, and results do not depend on it.

    ==================== ===========================================================================
    boundary-mass        share of similarity that crosses borders (of windows; else of the sides of
                         the principal axis), over that of evenly similar keys; at most 1
    cut-proxy            the least normalised cut (at borders of windows; else at up to 64 places
                         along the principal axis), over that of evenly similar keys; at most 1
    disagreement         1 − 2·(mean disagreement (1 − cos)/2 of pairs), at least 0: the mean cosine
    similarity-variance  1 − standard deviation of the cosine of pairs
    ==================== ===========================================================================

    With windows, the last two are means over windows: of pairs in the same one. Fewer than two keys
    are coherent. O(n d² + n log n) time, O(n d) memory.

    Parameters
    ----------
    metrics
        Of which the mean is taken; all by default.
    window
        Keys of a window, at least 2.
    sample
        Without windows: look at so many keys of each head, always the same places, at least 2. All
        by default. Sums over pairs of 256 keys differ by a few percent from those over all.

    Examples
    --------
    Keys of one direction, and of two that are opposed:

    >>> import numpy as np
    >>> one = np.ones((6, 4))
    >>> two = np.concatenate((one, -one))
    >>> coherence = WindowCoherence()
    >>> float(coherence(one).round(6)), float(coherence(two).round(6) < 0.01)
    (1.0, 1.0)
    """

    def __init__(
        self,
        metrics: Any = tuple(CoherenceMetric),
        window: int | None = None,
        sample: int | None = None,
    ) -> None:
        try:
            self.metrics = tuple(CoherenceMetric(metric) for metric in metrics)
        except ValueError:
            known = ", ".join(CoherenceMetric)
            raise ArgumentError("metrics", metrics, f"a sequence of: {known}") from None
        if not self.metrics:
            raise ArgumentError("metrics", metrics, "at least one metric")
        if window is not None and window < 2:
            raise ArgumentError("window", window, "at least 2, or None")
        if sample is not None and (sample < 2 or window is not None):
            raise ArgumentError("sample", sample, "at least 2 and without a window, or None")
        self.window, self.sample = window, sample

    def __call__(self, keys: Any) -> Array:
        """The mean of the metrics, (…,)."""
        return np.asarray(np.mean(list(self.measure(keys).values()), axis=0))

    def measure(self, keys: Any) -> dict[CoherenceMetric, Array]:
        """Each metric, (…,), in float64."""
        array = as_array(keys, "keys")
        if array.ndim < 2 or 0 in array.shape[-2:]:
            raise ShapeError("keys", array.shape, "(…, keys, size), neither empty")
        from .kernels.cuts import measured

        lead = array.shape[:-2]
        if self.sample is not None and array.shape[-2] > self.sample:
            array = np.take(array, _places(array.shape[-2], self.sample), axis=-2)
        flat = array.reshape((-1, *array.shape[-2:]))
        flat = flat.astype(compute_dtype(array.dtype, "keys"), copy=False)
        columns = [_COLUMNS.index(metric) for metric in self.metrics]
        found, _, _ = measured(
            flat, flat.dtype.name, window=self.window, cuts=min(columns) < 2,
            moments=max(columns) > 1,
        )  # fmt: skip
        return {
            metric: found[:, column].reshape(lead)
            for metric, column in zip(self.metrics, columns, strict=True)
        }


_COLUMNS = tuple(CoherenceMetric)


@functools.lru_cache(maxsize=8)
def _places(n: int, sample: int) -> Array:
    """Which of n keys are looked at."""
    return np.sort(np.random.default_rng(0).permutation(n)[:sample])
