"""Attention by distances in one hyperbolic space.

All are called and raise errors like :meth:`polyattn_core.mechanism.Mechanism.attend`: queries
(…, heads, queries, head size), keys and values (…, key heads, keys, head size); called as a model's
layer, (…, tokens, dim).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call

from .space import HyperbolicSpace, by_group

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]

NOISE = 4
"""Part of q₀k₀ − 1, in units of ε, below which q₀k₀ − q·k − 1 counts as 0: rounding, as between
a point and itself."""


class Hyperbolic(HyperbolicSpace):
    """The nearer a key in the Poincaré ball, the more it weighs; outputs are Einstein midpoints.

        m(softmax(−β d(q, k)), v),   d(x, y) = arcosh(1 + 2c‖x − y‖² / ((1 − c‖x‖²)(1 − c‖y‖²)))/√c

    where c = −κ, and m is the midpoint Σ wγv / Σ wγ of values in the Klein model with their Lorentz
    factors γ. β is the parameter `beta` (heads,), ln −κ the parameter `curvature.log`
    (key heads,). The offset that the paper adds to −βd is the same for all keys, so the soft-max
    takes it away.

    Trees fit into hyperbolic space as they do into no other: the number of points within a
    distance grows exponentially with it, like that of nodes.

    Distances are computed on the hyperboloid, where points near the boundary of the ball have all
    their digits, as cosh d = q₀k₀ − q·k. That difference is exact to ε q₀k₀ for a machine precision
    ε; where float32 is too coarse, float64 is used (option `precision`).

    O(n² d) time, O(n d) memory.

    References
    ----------
    Gulcehre et al., Hyperbolic attention networks, arXiv:1805.09786.

    Examples
    --------
    From a leaf of a tree its parent is nearer than its sibling, however close that seems:

    >>> import numpy as np, polyattn as pa
    >>> leaf, sibling, parent = [0.95, 0.0], [0.93, 0.19], [0.6, 0.05]
    >>> attention = pa.create(
    ...     "hyperbolic", dim=2, coordinates="ball", beta=4.0, aggregation="average"
    ... )
    >>> attention(leaf, [sibling, parent], np.eye(2)).round(2)
    array([0.1, 0.9])
    """

    def _rules(self, call: Call) -> Rules:
        from .kernels import geodesic

        sharpness = self.parameters["beta"] / self._query_roots()
        return [(geodesic, (sharpness, NOISE * np.finfo(call.dtype).eps))]

    def _query_roots(self) -> Array:
        return np.repeat(self._roots(), self.config.heads // self._key_heads)

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        # The sharpness is β/√−κ.
        roots, by = self._query_roots(), rule_parameters[:, 0].astype(np.float64)
        return self._gradients(by / roots, -by * self.parameters["beta"] / (2 * roots))

    def _gradients(self, by_beta: Array, by_log: Array) -> dict[str, Array]:
        return {"beta": by_beta, "curvature.log": by_group(by_log, len(by_log) // self._key_heads)}


class Lorentz(Hyperbolic):
    """Lorentz inner products as scores; outputs are Lorentzian centroids.

        m(softmax(−β d²(q, k)), v),   d²(x, y) = −2/κ · (x₀y₀ − x·y − 1) = 2/κ − 2⟨x, y⟩

    The squared Lorentzian distance is linear in the inner product ⟨x, y⟩ = x·y − x₀y₀ of points of
    the hyperboloid ⟨x, x⟩ = 1/κ: no inverse function is needed, gradients have no singularity, and
    far keys are cut off more sharply than by the geodesic distance, of which it is
    4/−κ · sinh²(√−κ d/2). m is the mean of values scaled back to the hyperboloid, which minimises
    the weighted sum of squared Lorentzian distances; it is the same point as the Einstein midpoint.
    β is the parameter `beta` (heads,), ln −κ the parameter
    `curvature.log` (key heads,).

    O(n² d) time, O(n d) memory.

    References
    ----------
    Law et al., Lorentzian distance learning for hyperbolic representations, ICML 2019; as attention
    in Chen et al., Fully hyperbolic neural networks, arXiv:2105.14686.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> lorentz = pa.create("lorentz", dim=3, coordinates="hyperboloid")
    >>> point = lambda x: np.array([np.sqrt(1 + np.dot(x, x)), *x])
    >>> output = lorentz(point([0.5, 0.0]), np.array([point([0.4, 0.1]), point([3.0, 1.0])]))
    >>> output.round(3), bool(np.isclose(output[0] ** 2 - output[1] ** 2 - output[2] ** 2, 1))
    (array([1.159, 0.564, 0.16 ]), True)
    """

    def _rules(self, call: Call) -> Rules:
        from .kernels import lorentzian

        return [(lorentzian, (self.parameters["beta"] / np.square(self._query_roots()),))]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        # The sharpness is β/−κ.
        roots, by = self._query_roots(), rule_parameters[:, 0].astype(np.float64)
        by_beta = by / np.square(roots)
        return self._gradients(by_beta, -by_beta * self.parameters["beta"])
