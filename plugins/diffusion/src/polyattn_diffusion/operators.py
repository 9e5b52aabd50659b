"""Linear operators on the graph of the keys, with the gradients of their powers by the keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyattn_core.arrays import Array

from .config import LaplacianType
from .graph import KeyGraph, NeighbourGraph


class Product(NamedTuple):
    """L x of a forward pass and Lᵀ y of its backward pass: the gradient by L is y xᵀ."""

    x: Array
    l_x: Array
    y: Array
    lt_y: Array


class Operator(ABC):
    """A linear operator L on (batch, heads, keys, width)."""

    graph: KeyGraph
    measure: Array | None = None
    """The m of the inner product Σ mᵢ xᵢ yᵢ in which L is symmetric; None for 1. Not of a drift."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """L x, a new array."""

    @abstractmethod
    def apply_transposed(self, y: Array) -> Array:
        """Lᵀ y."""

    @property
    @abstractmethod
    def bound(self) -> float:
        """At least the largest eigenvalue, or the largest rate of leaving a key."""

    @property
    def reach(self) -> float:
        """A bound that may be closer, for expansions: what they are does not depend on it."""
        return self.bound

    @abstractmethod
    def pull(self, products: Sequence[Product]) -> tuple[Array, dict[str, Array]]:
        """Gradients by the keys and by learned arrays."""


class Transposed(Operator):
    """Lᵀ in place of L."""

    def __init__(self, operator: Operator) -> None:
        self.graph, self.operator = operator.graph, operator
        if operator.measure is not None:
            self.measure = 1 / operator.measure

    def apply(self, x: Array) -> Array:
        return self.operator.apply_transposed(x)

    def apply_transposed(self, y: Array) -> Array:
        return self.operator.apply(y)

    @property
    def bound(self) -> float:
        return self.operator.bound

    @property
    def reach(self) -> float:
        return self.operator.reach

    def pull(self, products: Sequence[Product]) -> tuple[Array, dict[str, Array]]:
        return self.operator.pull([Product(p.y, p.lt_y, p.x, p.l_x) for p in products])


class Laplacian(Operator):
    """One of the three Laplacians; those of keys without an edge are 0."""

    def __init__(self, graph: KeyGraph, kind: LaplacianType) -> None:
        self.graph, self.kind = graph, kind
        degrees: Array = graph.degrees
        self._linked = (degrees > 0).astype(degrees.dtype)
        with np.errstate(divide="ignore"):
            self._inverse: Array = np.where(degrees > 0, 1 / degrees, degrees.dtype.type(0))
        self._root: Array = np.sqrt(self._inverse)
        if kind is LaplacianType.RANDOM_WALK:
            self.measure = np.where(degrees > 0, degrees, degrees.dtype.type(1))

    def apply(self, x: Array) -> Array:
        weigh = self.graph.weigh
        own: Array
        if self.kind is LaplacianType.UNNORMALIZED:
            own, found = self.graph.degrees * x, weigh(x)
        elif self.kind is LaplacianType.RANDOM_WALK:
            own, found = self._linked * x, weigh(x)
            found *= self._inverse
        else:
            own, found = self._linked * x, weigh(self._root * x)
            found *= self._root
        own -= found
        return own

    def apply_transposed(self, y: Array) -> Array:
        if self.kind is LaplacianType.RANDOM_WALK:
            return self._linked * y - self.graph.weigh(self._inverse * y)
        return self.apply(y)

    @cached_property
    def bound(self) -> float:
        if self.kind is LaplacianType.UNNORMALIZED:
            return 2 * float(self.graph.degrees.max())
        return 2.0

    @cached_property
    def reach(self) -> float:
        if not self.graph.positive:
            return self.bound
        # xᵀWx ≥ −xᵀx: no eigenvalue of D − W is over max d + 1, of D^−½ W D^−½ under −1/min d.
        degrees = self.graph.degrees
        if self.kind is LaplacianType.UNNORMALIZED:
            closer = float(degrees.max()) + 1
        else:
            closer = 1 + float(self._inverse.max())
        # Rounding moves eigenvalues, and polynomials grow fast beyond their interval.
        margin = 1 + float(np.sqrt(np.finfo(degrees.dtype).eps))
        return min(margin * closer, self.bound)

    def pull(self, products: Sequence[Product]) -> tuple[Array, dict[str, Array]]:
        d_degrees = np.zeros_like(self.graph.degrees)
        pairs = []
        for p in products:
            if self.kind is LaplacianType.UNNORMALIZED:
                d_degrees += _dot(p.y, p.x)
                pairs.append((-p.y, p.x))
                continue
            # What L took away from x, and Lᵀ from y, has the degrees as factors.
            taken = _dot(p.y, self._linked * p.x - p.l_x)
            if self.kind is LaplacianType.RANDOM_WALK:
                pairs.append((-self._inverse * p.y, p.x))
                d_degrees += taken * self._inverse
            else:
                pairs.append((-self._root * p.y, self._root * p.x))
                taken += _dot(p.x, self._linked * p.y - p.lt_y)
                d_degrees += 0.5 * taken * self._inverse
        pairs.append((d_degrees, self.graph.mark(np.ones_like(d_degrees))))
        return self.graph.pull(pairs), {}


def _dot(x: Array, y: Array) -> Array:
    found: Array = np.einsum("...d,...d->...", x, y)[..., None]
    return found


class Drift(Operator):
    """Minus the generator of a walk that drifts up a potential.

    From key i the walk leaves for its neighbour j at the rate
    aᵢⱼ = (1 + max(φⱼ − φᵢ, 0)) wᵢⱼ/dᵢ with the potential φ = drift·k; (L x)ᵢ = Σⱼ aᵢⱼ (xᵢ − xⱼ).
    """

    def __init__(self, graph: NeighbourGraph, key: Array, drift: Array) -> None:
        self.graph: NeighbourGraph = graph
        self._drift = drift[:, None, :].astype(key.dtype)
        self._key = graph.mark(key)
        potential = (self._key * self._drift).sum(axis=-1, keepdims=True)
        edges = graph.edges
        flat = graph.flat(potential)[:, 0]
        self._climb = np.maximum(flat[edges.indices] - flat[edges.rows], 0)
        degrees = graph.flat(graph.degrees)[:, 0]
        self._inverse = np.divide(1, degrees, out=np.zeros_like(degrees), where=degrees > 0)
        self.rates = graph.weights * self._inverse[edges.rows] * (1 + self._climb)
        ones = np.ones((edges.keys, 1, 1), key.dtype)
        self._leaving = edges.sum(self.rates, ones).reshape(*graph.shape, 1)

    def apply(self, x: Array) -> Array:
        moved = self.graph.edges.sum(self.rates, self.graph.flat(x)).reshape(x.shape)
        return self._leaving * x - moved

    def apply_transposed(self, y: Array) -> Array:
        moved = self.graph.edges.sum_back(self.rates, self.graph.flat(y)).reshape(y.shape)
        return self._leaving * y - moved

    @cached_property
    def bound(self) -> float:
        return float(self._leaving.max())

    def pull(self, products: Sequence[Product]) -> tuple[Array, dict[str, Array]]:
        graph, edges = self.graph, self.graph.edges
        rows = edges.rows
        d_rates = np.zeros_like(self.rates)
        for p in products:
            y, x = graph.flat(p.y), graph.flat(p.x)
            d_rates += _dot(y, x)[rows, 0] - edges.products(y, x)
        ones = np.ones((edges.keys, 1, 1), d_rates.dtype)
        flow = edges.sum(d_rates * self.rates, ones)[:, 0]
        d_weights = d_rates * (1 + self._climb) * self._inverse[rows]
        d_weights -= (flow * self._inverse)[rows]
        d_climb = d_rates * graph.weights * self._inverse[rows] * (self._climb > 0)
        d_potential = edges.sum_back(d_climb, ones) - edges.sum(d_climb, ones)
        d_potential = d_potential.reshape(*graph.shape, 1)
        d_key = graph.pull_from_weights(d_weights) + d_potential * self._drift
        return d_key, {"drift": (d_potential * self._key).sum(axis=(0, 2))}
