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
from polyattn_core.geometry import lengths, scaled
from polyattn_core.products import one_thread

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
        lead = array.shape[:-2]
        if self.sample is not None and array.shape[-2] > self.sample:
            array = np.take(array, _places(array.shape[-2], self.sample), axis=-2)
        flat = array.reshape((-1, *array.shape[-2:]))
        stacks = _stacks(flat.astype(compute_dtype(array.dtype, "keys"), copy=False))
        with one_thread:  # attention follows, and would wait for the threads of BLAS
            parts = [self._of_stack(each) for each in stacks]
        return {
            metric: np.concatenate([part[metric] for part in parts]).reshape(lead)
            for metric in self.metrics
        }

    def _of_stack(self, units: Array) -> dict[CoherenceMetric, Array]:
        """Of unit vectors (heads, n, d), the metrics of each head."""
        found: dict[CoherenceMetric, Array] = {}
        asked = set(self.metrics)
        if {CoherenceMetric.BOUNDARY_MASS, CoherenceMetric.CUT_PROXY} & asked:
            order, middles, gram = self._ordered(units)
            if CoherenceMetric.BOUNDARY_MASS in asked:
                found[CoherenceMetric.BOUNDARY_MASS] = self._boundaries(units, order, middles)
            if CoherenceMetric.CUT_PROXY in asked:
                n = units.shape[1]
                borders = all_borders(n) if middles is not None else self._borders(n)
                found[CoherenceMetric.CUT_PROXY] = least_cut(units, order, borders)[0]
        else:
            gram = _gram(units) if self.window is None else None
        if {CoherenceMetric.DISAGREEMENT, CoherenceMetric.SIMILARITY_VARIANCE} & asked:
            mean, square = self._moments(units, gram)
            found[CoherenceMetric.DISAGREEMENT] = np.clip(mean, 0, 1)
            spread = np.sqrt(np.maximum(square - mean**2, 0))
            found[CoherenceMetric.SIMILARITY_VARIANCE] = 1 - np.minimum(spread, 1)
        return found

    def _borders(self, n: int) -> Array:
        return np.arange(self.window or n, n, self.window or n)

    def _ordered(self, units: Array) -> tuple[Array, Array | None, Array | None]:
        """The order in which keys are cut; and without windows, the middle and `gram` of heads."""
        heads, n, _ = units.shape
        if self.window is not None:
            return np.broadcast_to(np.arange(n), (heads, n)), None, None
        if n < 2:
            return np.zeros((heads, n), np.int64), np.zeros(heads, np.int64), _gram(units)
        axis, gram = principal_axis(units)
        along = np.matmul(units, axis[..., None])[..., 0]
        middles = (along < along.mean(axis=1, keepdims=True)).sum(axis=1)
        return np.argsort(along, axis=1), middles, gram

    def _boundaries(self, units: Array, order: Array, middles: Array | None) -> Array:
        heads, n, _ = units.shape
        borders = self._borders(n) if middles is None else np.zeros(0, np.int64)
        if n < 2 or (middles is None and not len(borders)):
            return np.ones(heads)
        inner = (
            np.broadcast_to(borders, (heads, len(borders))) if middles is None else middles[:, None]
        )
        ends = np.concatenate((inner, np.full((heads, 1), n)), axis=1)
        sums = np.diff(_prefix_sums(units, order, ends), axis=1, prepend=0)
        return _boundary(sums, np.diff(ends, axis=1, prepend=0))

    def _moments(self, units: Array, gram: Array | None) -> tuple[Array, Array]:
        """Means of the cosine of pairs (of one window) and of its square; 1 without pairs."""
        n = units.shape[1]
        size = self.window or max(n, 1)
        parts = [_moments(units[:, i : i + size], gram) for i in range(0, n, size)]
        pairs = sum(part[0] for part in parts)
        if not pairs:
            return np.ones(len(units)), np.ones(len(units))
        cosines, squares = (np.stack([part[i] for part in parts]) for i in (1, 2))
        return cosines.sum(axis=0) / pairs, squares.sum(axis=0) / pairs


_MOST_CUTS = 64
_POWERS = {4: (5, 7), 8: (24, 0)}
"""Squarings and products, by the size of a number: in float32 an axis among nearly equal ones is
good enough."""


_FEW = 1 << 18  # numbers whose sums are not worth another thread


@functools.lru_cache(maxsize=8)
def _places(n: int, sample: int) -> Array:
    """Which of n keys are looked at."""
    return np.sort(np.random.default_rng(0).permutation(n)[:sample])


def _gram(units: Array) -> Array:
    return np.asarray(np.matmul(units.swapaxes(-1, -2), units).astype(np.float64))


def principal_axis(units: Array) -> tuple[Array, Array]:
    """The direction along which unit vectors (heads, n, d) vary most, with a sign of its own.

    Returns it, (heads, d), and the sums of products of coordinates, (heads, d, d), in float64. The
    covariance matrix is squared until it has rank one, in units of its trace, and a column is
    multiplied by what is left: k squarings and m products are (m + 1) · 2ᵏ power iterations.
    O(n d² + d³).
    """
    from polyattn_core.simd import threads

    from .kernels import axis_kernel

    heads, _, size = units.shape
    gram = np.empty((heads, size, size))
    axis = np.empty((heads, size), units.dtype)
    given = (np.ascontiguousarray(units), *_POWERS[units.itemsize], gram, axis)
    threads.run(axis_kernel(units.dtype.name).compile(), given, heads, threads.limit())
    length = np.linalg.norm(axis, axis=-1, keepdims=True)
    first = np.eye(size)[0]  # where nothing varies
    largest = np.take_along_axis(axis, np.abs(axis).argmax(axis=-1)[..., None], axis=-1)
    signed = np.where(largest > 0, length, -length)
    axis = np.where(length > 0, axis / np.where(length > 0, signed, 1), first)
    return np.asarray(axis.astype(units.dtype)), gram


def _prefix_sums(units: Array, order: Array, ends: Array) -> Array:
    """Of unit vectors (heads, n, d): sums of the first `ends` (heads, ends) in an order."""
    from polyattn_core.simd import threads

    from .kernels import sums_kernel

    heads, _, size = units.shape
    sums = np.empty((heads, ends.shape[1], size))
    given = (np.ascontiguousarray(units), order, ends, sums)
    workers = 1 if units.size < _FEW else threads.limit()
    threads.run(sums_kernel(units.dtype.name).compile(), given, heads, workers)
    return sums


def all_borders(n: int) -> Array:
    """Where n keys in a row may be cut: everywhere, or at 64 places evenly apart."""
    if n - 1 <= _MOST_CUTS:
        return np.arange(1, max(n, 1))
    return np.linspace(1, n - 1, _MOST_CUTS).round().astype(np.int64)


def least_cut(units: Array, order: Array, borders: Array) -> tuple[Array, Array]:
    """Of keys (heads, n, d): the least normalised cut of the first in an order, and where it is.

    The cut is over that of evenly similar keys.
    """
    heads, n, _ = units.shape
    if n < 2 or not len(borders):
        return np.ones(heads), np.zeros(heads, np.int64)
    ends = np.broadcast_to(np.append(borders, n), (heads, len(borders) + 1))
    sums = _prefix_sums(units, order, ends)
    whole, left, sizes = sums[:, -1, :, None], sums[:, :-1], borders.astype(np.float64)
    to_whole = np.matmul(left, whole)[..., 0]
    cut = (sizes * (n - sizes) + to_whole - np.einsum("hpd,hpd->hp", left, left)) / 2
    # Volumes: each key's weights with all others, without itself.
    left_volume = (n * sizes + to_whole) / 2 - sizes
    volume = (n * n + np.einsum("hd,hd->h", whole[..., 0], whole[..., 0])) / 2 - n
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = cut / left_volume + cut / (volume[:, None] - left_volume)
    # Sides without weights inside or out count as cut off.
    normalised = np.where(np.isfinite(normalised), np.maximum(normalised, 0), 0)
    even = n / (n - 1)  # (n − s)/(n − 1) + s/(n − 1), whatever the sizes
    best = np.argmin(normalised, axis=-1)
    least = np.take_along_axis(normalised, best[:, None], axis=-1)[:, 0]
    return np.minimum(least / even, 1.0), borders[best]


def _boundary(sums: Array, sizes: Array) -> Array:
    """Of the sums (heads, parts, d) and sizes of parts: what crosses over what would evenly."""
    n = sizes[0].sum()
    inside = (sizes**2 + np.einsum("hpd,hpd->hp", sums, sums)).sum(axis=1) / 2 - n
    whole = sums.sum(axis=1)
    total = (n**2 + np.einsum("hd,hd->h", whole, whole)) / 2 - n
    even = 1 - (sizes * (sizes - 1)).sum(axis=1) / (n * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(1 - inside / total, 0, None) / even
    # Without similarity, or with everything on one side, nothing crosses that could.
    return np.where((total > 1e-9 * n) & (even > 0), np.minimum(share, 1), 1.0)


def _stacks(keys: Array) -> list[Array]:
    """Unit vectors, (heads, n, d); an array for each head where some do not count."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if keys.dtype == np.float32:  # whose squares neither overflow nor vanish in float64
            units = scaled(keys[None], 1 / lengths(keys[None]))[0]
        else:
            small = keys / np.abs(keys).max(axis=-1, keepdims=True)
            units = small / np.sqrt(np.einsum("...d,...d->...", small, small))[..., None]
    good = np.isfinite(units).all(axis=-1)
    if good.all():
        return [units]
    return [each[kept][None] for each, kept in zip(units, good, strict=True)]


def _moments(units: Array, gram: Array | None) -> tuple[int, Array, Array]:
    """Number of pairs i ≠ j, sums of their cosines, and of the squares of these, by head."""
    n = units.shape[1]
    whole = units.sum(axis=1, dtype=np.float64)
    gram = _gram(units) if gram is None else gram
    cosines = np.einsum("hd,hd->h", whole, whole) - n
    return n * (n - 1), cosines, np.einsum("hij,hij->h", gram, gram) - n
