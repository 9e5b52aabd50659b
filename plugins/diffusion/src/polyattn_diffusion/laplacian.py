"""The Laplacian of the similarity graph of keys, to look at and to compute with."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ShapeError

from .config import LaplacianType
from .graph import CompleteGraph, KeyGraph, NeighbourGraph
from .operators import Laplacian

LAPLACIANS = tuple(str(kind) for kind in LaplacianType)


class GraphLaplacian:
    """The Laplacian of weights wᵢⱼ = exp(−‖kᵢ − kⱼ‖²/2σ²), i ≠ j.

        D − W,   I − D^{−½} W D^{−½}   or   I − D^{−1} W,   D = diag(W 1)

    It is an operator: `apply` computes L x, with all pairs in tiles that are never stored, O(n² d),
    or along the edges of nearest neighbours, O(edges · d). A key without an edge has L = 0.

    Made by :meth:`from_keys`.

    Examples
    --------
    >>> import numpy as np
    >>> from polyattn_diffusion.laplacian import GraphLaplacian, LaplacianType
    >>> keys = np.array([[0.0], [1.0], [3.0]])
    >>> laplacian = GraphLaplacian.from_keys(keys, 1.0, LaplacianType.UNNORMALIZED)
    >>> laplacian.to_array().round(2)
    array([[ 0.62, -0.61, -0.01],
           [-0.61,  0.74, -0.14],
           [-0.01, -0.14,  0.15]])
    """

    def __init__(self, graph: KeyGraph, kind: LaplacianType, lead: tuple[int, ...]) -> None:
        self.kind = kind
        """Which of the three it is."""
        self._operator = Laplacian(graph, kind)
        self._lead = lead
        self._graph = graph

    @classmethod
    def from_keys(
        cls,
        keys: Any,
        sigma: float | None = None,
        laplacian_type: LaplacianType | str = LaplacianType.SYMMETRIC_NORMALIZED,
        *,
        k: int | None = None,
        threads: int | None = None,
    ) -> Self:
        """Build it from keys (…, keys, size).

        Parameters
        ----------
        keys
            One graph for each element of the leading axes.
        sigma
            Bandwidth; the median distance by default, of all pairs where these are at most 2¹⁵,
            of as many pairs drawn at random (always the same) otherwise.
        laplacian_type
            Which Laplacian.
        k
            Keep only edges to the k nearest keys, in either direction. All pairs by default.
        threads
            Threads to use; all by default.
        """
        try:
            kind = LaplacianType(laplacian_type)
        except ValueError:
            accepted = f"one of {', '.join(LAPLACIANS)}"
            raise ArgumentError("laplacian_type", laplacian_type, accepted) from None
        if sigma is not None and not (0 < sigma < math.inf):
            raise ArgumentError("sigma", sigma, "a positive number, or None")
        if k is not None and not (isinstance(k, int | np.integer) and k > 0):
            raise ArgumentError("k", k, "a number of neighbours of at least 1, or None")
        array = as_array(keys, "keys")
        if array.ndim < 2 or 0 in array.shape:
            raise ShapeError("keys", array.shape, "(…, keys, size), no axis empty")
        lead = array.shape[:-2]
        flat = array.reshape(1, -1, *array.shape[-2:]).astype(compute_dtype(array.dtype, "keys"))
        graph: KeyGraph
        if k is None:
            graph = CompleteGraph(flat, sigma, None, threads)
        else:
            graph = NeighbourGraph(flat, sigma, None, threads, int(k))
        return cls(graph, kind, lead)

    def _outside(self, x: Array) -> Array:
        return x.reshape(*self._lead, *x.shape[2:])

    @property
    def sigma(self) -> Array:
        """Bandwidths (…)."""
        return self._graph.sigma.reshape(self._lead)

    @property
    def degrees(self) -> Array:
        """Sums of weights (…, keys)."""
        return self._outside(self._graph.degrees[..., 0])

    @property
    def edges(self) -> int | None:
        """Number of edges of all graphs, both directions counted; None for all pairs."""
        return len(self._graph.edges) if isinstance(self._graph, NeighbourGraph) else None

    @property
    def largest_eigenvalue(self) -> float:
        """A bound of it: 2 where normalised, twice the largest degree otherwise."""
        return self._operator.bound

    def apply(self, x: Any) -> Array:
        """L x for x (…, keys, width)."""
        array = as_array(x, "x")
        shape = self._graph.shape
        wanted = (*self._lead, shape[2])
        if array.shape[:-1] != wanted:
            raise ShapeError("x", array.shape, f"{wanted} and a width")
        dtype = self._graph.points.dtype
        flat = array.astype(dtype).reshape(*shape, array.shape[-1])
        return self._outside(self._operator.apply(flat))

    def to_array(self) -> Array:
        """The matrices (…, keys, keys): for looking at small graphs."""
        keys = self._graph.shape[2]
        return self.apply(np.broadcast_to(np.eye(keys), (*self._lead, keys, keys)))

    def __repr__(self) -> str:
        kind = "all pairs" if self.edges is None else f"{self.edges} edges"
        return f"<GraphLaplacian {self.kind} of {self._graph.shape[2]} keys, {kind}>"
