"""Connected components as a radius grows: persistence in dimension 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import DataError, ShapeError


def persistence_h0(points: Any) -> Array:
    """Deaths of the connected components of points (…, n, d): (…, n − 1), ascending.

    All components are born at 0; two merge where the radius reaches their Euclidean distance. The
    deaths are the lengths of the edges of the minimum spanning tree, all n − 1 of them; one
    component lives for ever.

    O(n² d) time and O(n) memory, by Prim's algorithm with distances computed as they are needed.

    References
    ----------
    Edelsbrunner and Harer, Computational topology (2010), chapter VII.

    Examples
    --------
    >>> persistence_h0([[0.0], [1.0], [5.0], [7.0]])
    array([1., 2., 4.])
    """
    from .kernels.spanning_tree import spanning_tree_kernel

    array = as_array(points, "points")
    if array.ndim < 2 or 0 in array.shape:
        raise ShapeError("points", array.shape, "(…, n, d), no axis empty")
    if not np.isfinite(array).all():
        raise DataError("points", "numbers that are not finite", "finite numbers")
    lead, (n, size) = array.shape[:-2], array.shape[-2:]
    flat = np.ascontiguousarray(array, np.float64).reshape(-1, n, size)
    deaths = np.empty((len(flat), n - 1))
    distance, done = np.empty(n), np.empty(n, np.bool_)
    kernel = spanning_tree_kernel()
    for each, found in zip(flat, deaths, strict=True):
        kernel(each, distance, done, found)
    return np.asarray(np.sort(np.sqrt(deaths), axis=-1).reshape((*lead, n - 1)))
