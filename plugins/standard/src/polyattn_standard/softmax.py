"""Mechanisms that differ from the transformer's attention in their score alone.

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
from polyattn_core.positions import Rope
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]


class ScaledDotProduct(StreamingMechanism):
    """The attention of the transformer: values averaged by how well keys match the query.

        softmax(scale · q·kᵀ) v

    where scale is 1/√(head size) unless given. With independent coordinates of variance 1, scores
    then have variance 1, whatever the head size.

    O(n² d) time, O(n d) memory: scores are computed a tile at a time and never kept.

    References
    ----------
    Vaswani et al., Attention is all you need, arXiv:1706.03762.

    Examples
    --------
    A single query, keys one number long, values that show the weights:

    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("scaled-dot-product", dim=1)
    >>> attention([1.0], [[0.0], [np.log(2)], [np.log(5)]], np.eye(3))
    array([0.125, 0.25 , 0.625])
    """


class Cosine(StreamingMechanism):
    """The angle between query and key decides, their lengths do not.

        softmax(g · q̂·k̂) v,   x̂ = x / max(‖x‖, ε)

    where g is a learned gain of each head: the parameter `gain` (heads,), which starts at `scale`.
    Scores stay within ±g, so that no head saturates because vectors grew. Rotary positions turn
    the unit vectors.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Henry et al., Query-key normalization for transformers, arXiv:2010.04245.

    Examples
    --------
    Keys ten times longer change nothing:

    >>> import numpy as np, polyattn as pa
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 8))
    >>> cosine = pa.create("cosine", dim=8, heads=2, scale=4.0)
    >>> np.allclose(cosine(query, key, value), cosine(query, 10 * key, value))
    True
    """

    by_row = True

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        gains = np.full(self.config.heads, self.config.scale, np.float64)
        return {**super()._initial_parameters(rng), "gain": gains}

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Rules:
        from .kernels.rules import gain

        return [(gain, (self.parameters["gain"],))]

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        epsilon = self.config.epsilon
        unit_query, query_length = _unit(query, epsilon)
        unit_key, key_length = _unit(key, epsilon)

        def undo(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            return (
                _unit_pullback(d_query, unit_query, query_length, epsilon),
                _unit_pullback(d_key, unit_key, key_length, epsilon),
            )

        return unit_query, unit_key, undo

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        return {"gain": rule_parameters[:, 0]}


def _unit(array: Array, epsilon: float) -> tuple[Array, Array]:
    length = np.sqrt(np.einsum("...d,...d->...", array, array))[..., None]
    # In C order whatever that of the input is: kernels take the last axis to be contiguous.
    return np.divide(array, np.maximum(length, epsilon), order="C"), length


def _unit_pullback(gradient: Array, unit: Array, length: Array, epsilon: float) -> Array:
    # Hidden vectors have no gradient, and 0 · NaN must not make them one.
    live = np.any(gradient, axis=-1, keepdims=True)
    unit, length = np.where(live, unit, 0), np.where(live, length, 1)
    along = np.einsum("...d,...d->...", gradient, unit)[..., None]
    tangent = gradient - np.where(length > epsilon, along, 0) * unit
    return np.asarray(tangent / np.maximum(length, epsilon))


class L2(StreamingMechanism):
    """The nearer a key, the more it weighs.

        softmax(−scale · ‖q − k‖²) v

    where scale is 1/√(head size) unless given. Unlike dot products, distances give a Lipschitz
    continuous self-attention where queries and keys share their projection.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Kim et al., The Lipschitz constant of self-attention, arXiv:2006.04710.

    Examples
    --------
    A key far away has no weight, however long it is:

    >>> import numpy as np, polyattn as pa
    >>> l2 = pa.create("l2", dim=1)
    >>> l2([1.0], [[1.0], [2.0], [30.0]], np.eye(3)).round(3)
    array([0.731, 0.269, 0.   ])
    """

    by_row = False  # the origin moves with the keys

    def _scale(self, call: Call) -> float:
        return 1.0

    def _sharpness(self, call: Call) -> Any:
        return super()._scale(call)

    def _rules(self, call: Call) -> Rules:
        from .kernels.rules import squared_distance

        return [(squared_distance, (self._sharpness(call),))]

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        # The kernel has ‖q‖² + ‖k‖² − 2 q·k, which loses its digits far from the origin. Distances
        # stay the same when everything moves, so it moves there. Unless it is to be rotated, which
        # is about the origin as it was.
        if isinstance(self.config.position, Rope):
            return query, key, None
        centre = _middle(query, key.shape[1])
        group = query.shape[1] // key.shape[1]
        # In C order whatever that of the inputs is: kernels take the last axis to be contiguous.
        moved = np.subtract(query, np.repeat(centre, group, axis=1), order="C")
        return moved, np.subtract(key, centre, order="C"), None


def _middle(query: Array, key_heads: int) -> Array:
    """A point amid the queries of each key head, (batch, key heads, 1, size).

    Of the queries, because hidden keys must not matter; their median, because a few wild ones
    should not; of some of them, because it need not be exact.
    """
    few = query[:, :, :: max(1, query.shape[2] // 32)]
    few = few.reshape((len(query), key_heads, -1, query.shape[3]))
    half = few.shape[2] // 2
    return np.partition(np.where(np.isfinite(few), few, 0), half, axis=2)[:, :, half : half + 1]


class Gaussian(L2):
    """Values smoothed by a Gaussian kernel around the query.

        softmax(−‖q − k‖² / (2σ²)) v

    where the width σ is the option `bandwidth`, one for all heads or one for each: heads may look
    near and far. By default σ² = √(head size), which gives

        −‖q − k‖² / (2σ²) = q·k/√d − ‖q‖²/(2√d) − ‖k‖²/(2√d)

    that is, scaled dot-product attention with a penalty on long keys, and exactly that attention
    where keys are equally long. σ² = √d / 2 gives `l2`. This is the Nadaraya–Watson estimator of
    statistics: to smooth data with it, choose the width by the data.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Tsai et al., Transformer dissection: a unified understanding of transformer's attention via the
    lens of kernel, arXiv:1908.11775.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.linspace(0, 6, 61)[:, None]
    >>> smooth = pa.create("gaussian", dim=1, bandwidth=0.1)(x, x, np.sin(x))
    >>> bool(abs(smooth - np.sin(x)).max() < 0.1)
    True
    """

    def _sharpness(self, call: Call) -> Any:
        width = self.config.bandwidth
        if width is None:
            return 0.5 / np.sqrt(call.query.shape[-1])
        return 0.5 / np.square(np.asarray(width, np.float64))


class SoftmaxOne(StreamingMechanism):
    """Soft-max with a learned sink: a head that finds nothing may attend to nothing.

        eˢ / (e^sink + Σ eˢ) v,   s = scale · q·kᵀ

    where the sink is the score of one more key that has no value: the parameter `sink` (heads,).
    At its initial 0 it adds 1 to the denominator. The weights of a row sum to less than 1.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Miller, Attention is off by one (2023), as the zero sink of Xiao et al., Efficient streaming
    language models with attention sinks, arXiv:2309.17453, section 3.3; with a learned sink for
    each head, OpenAI, gpt-oss model card, arXiv:2508.10925.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("softmax-one", dim=1)
    >>> attention([1.0], [[0.0], [np.log(2)]], np.eye(2))
    array([0.25, 0.5 ])
    >>> attention([1.0], [[-9.0], [-9.0]], np.eye(2)).round(4)
    array([0.0001, 0.0001])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        sinks = np.full(self.config.heads, self.config.sink, np.float64)
        return {**super()._initial_parameters(rng), "sink": sinks}

    def _sink(self) -> Array:
        return self.parameters["sink"]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        assert sink is not None
        return {"sink": sink}
