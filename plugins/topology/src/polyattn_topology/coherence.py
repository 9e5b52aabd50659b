"""How much keys belong together, from their similarity graph, in linear time.

The graph is complete, with weights w(i, j) = (1 + cos(kᵢ, kⱼ))/2 from 0 to 1. Sums of its weights
over sets of keys are products of sums of unit vectors, so nothing of size keys × keys is needed.
Keys that are 0 or not finite have no direction, and do not count.
"""

from __future__ import annotations

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

    def __init__(self, metrics: Any = tuple(CoherenceMetric), window: int | None = None) -> None:
        try:
            self.metrics = tuple(CoherenceMetric(metric) for metric in metrics)
        except ValueError:
            known = ", ".join(CoherenceMetric)
            raise ArgumentError("metrics", metrics, f"a sequence of: {known}") from None
        if not self.metrics:
            raise ArgumentError("metrics", metrics, "at least one metric")
        if window is not None and window < 2:
            raise ArgumentError("window", window, "at least 2, or None")
        self.window = window

    def __call__(self, keys: Any) -> Array:
        """The mean of the metrics, (…,)."""
        return np.asarray(np.mean(list(self.measure(keys).values()), axis=0))

    def measure(self, keys: Any) -> dict[CoherenceMetric, Array]:
        """Each metric, (…,), in float64."""
        array = as_array(keys, "keys")
        if array.ndim < 2 or 0 in array.shape[-2:]:
            raise ShapeError("keys", array.shape, "(…, keys, size), neither empty")
        lead = array.shape[:-2]
        flat = array.reshape((-1, *array.shape[-2:]))
        units = _units(flat.astype(compute_dtype(array.dtype, "keys"), copy=False))
        rows = [self._of_one(each) for each in units]
        return {
            metric: np.array([row[metric] for row in rows]).reshape(lead) for metric in self.metrics
        }

    def _of_one(self, units: Array) -> dict[CoherenceMetric, float]:
        found: dict[CoherenceMetric, float] = {}
        cut = {CoherenceMetric.BOUNDARY_MASS, CoherenceMetric.CUT_PROXY} & set(self.metrics)
        if cut:
            ordered, borders = self._ordered(units)
            if CoherenceMetric.BOUNDARY_MASS in cut:
                found[CoherenceMetric.BOUNDARY_MASS] = self._boundary(ordered, borders)
            if CoherenceMetric.CUT_PROXY in cut:
                borders = borders if self.window else all_borders(len(ordered))
                found[CoherenceMetric.CUT_PROXY] = least_cut(ordered, borders)[0]
        moments = {CoherenceMetric.DISAGREEMENT, CoherenceMetric.SIMILARITY_VARIANCE}
        if moments & set(self.metrics):
            size = self.window or max(len(units), 1)
            parts = [_moments(units[i : i + size]) for i in range(0, len(units), size)]
            pairs = sum(part[0] for part in parts)
            mean, square = (
                (sum(part[i] for part in parts) / pairs if pairs else 1.0) for i in (1, 2)
            )
            found[CoherenceMetric.DISAGREEMENT] = min(max(mean, 0.0), 1.0)
            spread = np.sqrt(max(square - mean**2, 0.0))
            found[CoherenceMetric.SIMILARITY_VARIANCE] = 1 - min(float(spread), 1.0)
        return found

    def _ordered(self, units: Array) -> tuple[Array, Array]:
        """Keys in the order in which they are cut, and where borders are."""
        if self.window:
            return units, np.arange(self.window, len(units), self.window)
        if len(units) < 2:
            return units, np.arange(0)
        along = units @ principal_axis(units)
        order = np.argsort(along)
        middle = int(np.searchsorted(along[order], along.mean()))
        return units[order], np.array([middle])

    def _boundary(self, units: Array, borders: Array) -> float:
        n = len(units)
        borders = borders[(borders > 0) & (borders < n)]
        if not len(borders):
            return 1.0
        starts = np.concatenate(([0], borders))
        sums = np.add.reduceat(units, starts, axis=0).astype(np.float64)
        sizes = np.diff(np.concatenate((starts, [n])))
        inside = (sizes**2 + np.einsum("pd,pd->p", sums, sums)).sum() / 2 - n
        whole = sums.sum(axis=0)
        total = (n**2 + whole @ whole) / 2 - n
        even = 1 - (sizes * (sizes - 1)).sum() / (n * (n - 1))
        return float(min(max(1 - inside / total, 0.0) / even, 1.0)) if total > 1e-9 * n else 1.0


_MOST_CUTS = 64
_SQUARINGS = 24


def principal_axis(units: Array) -> Array:
    """The direction along which unit vectors vary most, (d,), with a sign that is theirs.

    The covariance matrix is squared until it has rank one, in units of its trace: k squarings are
    2ᵏ power iterations. O(n d² + d³), and no LAPACK, whose threads would wait for work where
    attention computes next.
    """
    mean = units.mean(axis=0, dtype=np.float64)
    matrix = (units.T @ units).astype(np.float64) / len(units) - np.outer(mean, mean)
    for _ in range(_SQUARINGS):
        trace = np.trace(matrix)
        if trace <= 0:
            break
        matrix = matrix / trace
        square = matrix @ matrix
        if np.trace(square) > 1 - 1e-15:
            break
        matrix = square
    axis = matrix[:, np.argmax(np.diag(matrix))]
    length = float(np.sqrt(axis @ axis))
    if length == 0:  # nothing varies
        return np.asarray(np.eye(len(axis))[0].astype(units.dtype))
    positive = axis[np.argmax(np.abs(axis))] > 0
    return np.asarray((axis / (length if positive else -length)).astype(units.dtype))


def all_borders(n: int) -> Array:
    """Where n keys in a row may be cut: everywhere, or at 64 places evenly apart."""
    if n - 1 <= _MOST_CUTS:
        return np.arange(1, max(n, 1))
    return np.linspace(1, n - 1, _MOST_CUTS).round().astype(np.int64)


def least_cut(units: Array, borders: Array) -> tuple[float, int]:
    """The least normalised cut of a prefix over that of evenly similar keys, and where it is."""
    n = len(units)
    if n < 2 or not len(borders):
        return 1.0, 0
    starts = np.concatenate(([0], borders))
    sums = np.cumsum(np.add.reduceat(units, starts, axis=0), axis=0, dtype=np.float64)
    whole, left, sizes = sums[-1], sums[:-1], borders.astype(np.float64)
    cut = (sizes * (n - sizes) + left @ whole - np.einsum("pd,pd->p", left, left)) / 2
    # Volumes: each key's weights with all others, without itself.
    left_volume = (n * sizes + left @ whole) / 2 - sizes
    volume = (n * n + whole @ whole) / 2 - n
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = cut / left_volume + cut / (volume - left_volume)
    # Sides without weights inside or out count as cut off.
    normalised = np.where(np.isfinite(normalised), np.maximum(normalised, 0), 0)
    even = n / (n - 1)  # (n − s)/(n − 1) + s/(n − 1), whatever the sizes
    best = int(np.argmin(normalised))
    return float(min(normalised[best] / even, 1.0)), int(borders[best])


def _units(keys: Array) -> list[Array]:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        peak = np.abs(keys).max(axis=-1, keepdims=True)
        small = keys / peak  # so that squares neither overflow nor vanish
        units = small / np.sqrt(np.einsum("...d,...d->...", small, small))[..., None]
    good = np.isfinite(units).all(axis=-1)
    if good.all():
        return list(units)
    return [each[kept] for each, kept in zip(units, good, strict=True)]


def _moments(units: Array) -> tuple[int, float, float]:
    """Number of pairs i ≠ j, sum of their cosines, and of the squares of these."""
    n = len(units)
    whole = units.sum(axis=0, dtype=np.float64)
    gram = (units.T @ units).astype(np.float64)
    return n * (n - 1), float(whole @ whole) - n, float((gram * gram).sum()) - n
