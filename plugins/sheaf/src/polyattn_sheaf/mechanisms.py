"""The mechanisms `sheaf` and `residual-sparse`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.partial import PartialState
from polyattn_core.products import matmul
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule


def initial_maps(config: Any, rng: np.random.Generator) -> dict[str, Array]:
    """Restriction maps near the identity, (heads, stalk, head size)."""
    size = config.head_dim
    stalk = config.stalk or size
    shapes = {"query_map": config.heads, "key_map": config.key_heads}
    return {
        name: (np.eye(stalk, size) + rng.normal(0, 0.1 / math.sqrt(size), (heads, stalk, size)))
        .astype(np.float32)
        for name, heads in shapes.items()
    }  # fmt: skip


def inverse_temperature(config: Any) -> float:
    """β."""
    return float(config.beta or 1 / math.sqrt(config.stalk or config.head_dim))


def restrict(x: Array, matrix: Array) -> Array:
    """ρ x for each head; what is behind a mask may be infinite."""
    return matmul(x, matrix.astype(x.dtype).swapaxes(-1, -2))


def pull_restricted(gradient: Array, x: Array, matrix: Array) -> tuple[Array, Array]:
    """Gradients by x and by ρ."""
    d_x = matmul(gradient, matrix.astype(x.dtype))
    # Hidden tokens have no gradient, and may hold anything.
    known = np.where((gradient != 0).any(axis=-1, keepdims=True), x, x.dtype.type(0))
    return d_x, np.einsum("bhns,bhnd->hsd", gradient, known)


class Sheaf(StreamingMechanism):
    """Attention by agreement: how far two tokens differ in a space that both are mapped to.

        softmax(−β ‖ρ_q q − ρ_k k‖²) v

    the energy of the edge between q and k in a cellular sheaf whose restriction maps depend on the
    role of an end. The parameters `query_map` (heads, stalk, head size) and `key_map` (key heads,
    stalk, head size) start near the identity; β is 1/√stalk unless given.

    O(n² (stalk + d)) time, O(n (stalk + d)) memory, forward and backward. Masks, shapes, errors,
    statistics and partial results are those of :meth:`polyattn_core.mechanism.Mechanism.attend`;
    gradients are by query, key, value, bias and maps.

    References
    ----------
    Bodnar et al., Neural sheaf diffusion: a topological perspective on heterophily and
    oversmoothing in GNNs, arXiv:2202.04579. Hansen and Gebhart, Sheaf neural networks,
    arXiv:2012.06333.

    Examples
    --------
    A map that turns signs around makes opposites agree:

    >>> import numpy as np, polyattn as pa
    >>> sheaf = pa.create("sheaf", dim=1)
    >>> sheaf.parameters.update({"query_map": [[[1.0]]], "key_map": [[[-1.0]]]})
    >>> sheaf([3.0], [[3.0], [-3.0]], np.eye(2)).round(3)
    array([0., 1.])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return {**super()._initial_parameters(rng), **initial_maps(self.config, rng)}

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Sequence[tuple[ScoreRule, Sequence[Any]]]:
        from .kernels import energy_score

        return [(energy_score, (inverse_temperature(self.config),))]

    def _restricted(self, call: Call) -> Call:
        maps = self.parameters
        return replace(
            call,
            query=restrict(call.query, maps["query_map"]),
            key=restrict(call.key, maps["key_map"]),
        )

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._restricted(call))

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._restricted(call), wanted)

    def _partial(self, call: Call) -> PartialState:
        return super()._partial(self._restricted(call))

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        out, pull = super()._vjp(self._restricted(call))
        maps = {name: self.parameters[name] for name in ("query_map", "key_map")}

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            for name, x in (("query", call.query), ("key", call.key)):
                d_x, d_map = pull_restricted(getattr(found, name), x, maps[f"{name}_map"])
                setattr(found, name, d_x)
                found.parameters[f"{name}_map"] = d_map
            return found

        return out, pullback


class ResidualSparse(Sheaf):
    """Only what disagrees is exchanged: pairs of little energy get no weight.

        softmax(−β Eᵢⱼ where Eᵢⱼ > threshold, else −∞) v,   Eᵢⱼ = ‖ρ_q qᵢ − ρ_k kⱼ‖²

    Pairs at most `threshold` apart agree already, and a message between them would say nothing new;
    among the others the nearest count most. A query that agrees with all it sees gets 0, with which
    a residual connection leaves it as it is. The threshold is not differentiated through.

    O(n² (stalk + d)) time: all energies are computed, what is sparse is the result. Everything else
    is as for :class:`Sheaf`.

    References
    ----------
    The energy: Bodnar et al., Neural sheaf diffusion: a topological perspective on heterophily and
    oversmoothing in GNNs, arXiv:2202.04579.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> layer = pa.create("residual-sparse", dim=1, threshold=0.5)
    >>> layer.parameters.update({"query_map": [[[1.0]]], "key_map": [[[1.0]]]})
    >>> layer([0.0], [[0.1], [2.0], [3.0]], np.eye(3)).round(3)
    array([0.   , 0.993, 0.007])
    """

    def _rules(self, call: Call) -> Sequence[tuple[ScoreRule, Sequence[Any]]]:
        from .kernels import residual_score

        return [(residual_score, (inverse_temperature(self.config), self.config.threshold))]
