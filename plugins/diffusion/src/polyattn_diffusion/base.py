"""What all mechanisms on the graph of the keys share: soft-max attention to filtered values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.largest import largest
from polyattn_core.masks import MaskShape
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism

from .config import FilterConfig, KeyGraphConfig, LaplacianType
from .filters import Filter, Tape
from .graph import CompleteGraph, KeyGraph, NeighbourGraph
from .laplacian import GraphLaplacian
from .operators import Laplacian, Operator, Transposed

ParameterPullback = Callable[[Array], dict[str, Array]]
"""From the gradient by coefficients (terms, heads) to those by learned arrays."""

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


@dataclass(slots=True)
class _Remembered:
    key: Array
    visible: Array | None
    graph: KeyGraph

    def fits(self, key: Array, visible: Array | None) -> bool:
        if key.dtype != self.key.dtype or not np.array_equal(key, self.key):
            return False
        if visible is None or self.visible is None:
            return visible is self.visible
        return np.array_equal(visible, self.visible)


class KeyGraphMechanism(StreamingMechanism):
    """Weights softmax(q·k) spread over the graph of the keys, then averaged values.

    As p f(L) v = p (f(L) v), the filter acts on the values, once for all queries, and the rest is
    plain attention.

    The graph of the last keys is remembered, and used again as long as keys and padding stay the
    same, which is compared, not assumed: decoding many queries over one set of keys builds it once.
    `laplacian` shows it, `reset` forgets it. Calls from several threads are safe.
    """

    config: Any

    def __init__(self, config: KeyGraphConfig, **rest: Any) -> None:
        super().__init__(config, **rest)
        self._remembered: _Remembered | None = None

    # ---- what a mechanism says ----------------------------------------------------------------

    @abstractmethod
    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        """The function of the operator, and the pullback of its coefficients."""

    def _operator(self, graph: KeyGraph, key: Array) -> Operator:
        """The operator on a graph."""
        return Laplacian(graph, self.config.laplacian_type)

    def _tolerance(self, dtype: str) -> float:
        return self.config.tolerance or TOLERANCE[dtype]

    # ---- the graph ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the graph of the last keys."""
        self._remembered = None

    @property
    def laplacian(self) -> GraphLaplacian | None:
        """The Laplacian of the last keys, of shape (batch · heads, keys, keys)."""
        found = self._remembered
        if found is None:
            return None
        kind = getattr(self.config, "laplacian_type", LaplacianType.RANDOM_WALK)
        return GraphLaplacian(found.graph, kind, found.graph.shape[:2])

    def _graph(self, call: Call) -> KeyGraph:
        visible = _visible(call)
        found = self._remembered
        if found is not None and found.fits(call.key, visible):
            return found.graph
        config = self.config
        graph: KeyGraph
        if isinstance(config, FilterConfig) and not config.use_knn:
            graph = CompleteGraph(call.key, config.sigma, visible, config.threads)
        else:
            graph = NeighbourGraph(call.key, config.sigma, visible, config.threads, config.k)
        # Replaced as a whole, so that other threads see the old one or the new one.
        self._remembered = _Remembered(call.key.copy(), visible, graph)
        return graph

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_remembered": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyGraphMechanism:
        import copy

        other = type(self).__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return other

    # ---- the contract -------------------------------------------------------------------------

    def _prepared(self, call: Call) -> tuple[Operator, Array, Filter, ParameterPullback]:
        graph = self._graph(call)
        operator = self._operator(graph, call.key)
        function, pull_parameters = self._filter(operator, call.dtype.name)
        return operator, graph.mark(call.value), function, pull_parameters

    def _forward(self, call: Call) -> Array:
        operator, value, function, _ = self._prepared(call)
        return super()._forward(replace(call, value=function.apply(operator, value)))

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        operator, value, function, pull_parameters = self._prepared(call)
        tape: Tape = []
        out, pull = super()._vjp(replace(call, value=function.apply(operator, value, tape)))

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            incoming = operator.graph.mark(found.value)
            d_value, products, d_coefficients = function.pull(operator, tape, incoming)
            d_key, parameters = operator.pull(products)
            parameters |= pull_parameters(d_coefficients)
            return Gradients(
                found.query, found.key + d_key, operator.graph.mark(d_value), found.bias, parameters
            )

        return out, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        operator, value, function, _ = self._prepared(call)
        filtered = replace(call, value=function.apply(operator, value))
        taken = wanted
        if "top_weights" in wanted:  # those after the filter, which mixes all of a row
            taken = wanted - {"top_weights"} | {"weights"}
        out, found = super()._observe(filtered, taken)
        spread = {
            name: self._spread(
                operator, function, array[..., None, :] if array.ndim == 3 else array
            )
            for name, array in found.items()
        }
        found = {n: x.reshape(found[n].shape) for n, x in spread.items()}
        if "top_weights" in wanted:
            found |= largest(found["weights"], call.top)
        return out, {n: x for n, x in found.items() if n in wanted | {"top_keys"}}

    @staticmethod
    def _spread(operator: Operator, function: Filter, weights: Array) -> Array:
        """Weights (batch, heads, rows, keys) after the filter."""
        batch, heads, rows, keys = weights.shape
        own = operator.graph.shape[1]
        columns = weights.reshape(batch, own, heads // own * rows, keys).swapaxes(-1, -2)
        found = function.apply(Transposed(operator), np.ascontiguousarray(columns))
        return operator.graph.mark(found).swapaxes(-1, -2).reshape(weights.shape)


def _visible(call: Call) -> Array | None:
    """Which keys a padding mask shows, (batch, keys)."""
    if call.mask is None:
        return None
    shape = call.shape
    found: Array = call.mask.dense(MaskShape(shape.lead, 1, 1, shape.keys))[:, 0, 0]
    return found
