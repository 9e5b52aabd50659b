"""The mechanisms `efficient`, `linformer` and `nystrom`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ShapeError
from polyattn_core.products import matmul

from .base import Back, SetMechanism, soft_max
from .config import EfficientConfig, LinformerConfig, NystromConfig


def _t(array: Array) -> Array:
    return array.swapaxes(-1, -2)


def _normalised(x: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
    """Soft-max along an axis, and its pullback."""
    found = np.exp(x - x.max(axis=axis, keepdims=True))
    found /= found.sum(axis=axis, keepdims=True)

    def back(gradient: Array) -> Array:
        along = (gradient * found).sum(axis=axis, keepdims=True)
        return np.asarray(found * (gradient - along))

    return found, back


class Efficient(SetMechanism):
    """Efficient attention: soft-max of queries over channels, of keys over tokens, then products.

        ρ_q(q) (ρ_k(k)ᵀ v),   ρ_q = softmax over the channels of a query,
                              ρ_k = softmax over the tokens of a channel

    of scale · q and scale · k. Each channel of the keys is a map of the whole sequence, and a query
    mixes these maps: its weights over tokens are positive and sum to 1.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward. Shapes and
    errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`. Padding is the mask.
    Products are those of NumPy's BLAS, which has its own threads. Calls from several threads are
    safe.

    References
    ----------
    Shen et al., Efficient attention: attention with linear complexities, arXiv:1812.01243.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((5, 8))
    >>> weights = pa.create("efficient", dim=8)(x, x, np.eye(5))
    >>> np.allclose(weights.sum(axis=1), 1)
    True
    """

    config: EfficientConfig

    def _set(self, query: Array, key: Array, value: Array) -> tuple[Array, Back]:
        scale = query.dtype.type(self.config.scale)
        mixes, mixes_back = _normalised(scale * query, -1)
        maps, maps_back = _normalised(scale * key, -2)
        context = matmul(_t(maps), value)

        def back(gradient: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
            by_context = matmul(_t(mixes), gradient)
            by_query = scale * mixes_back(matmul(gradient, _t(context)))
            by_key = scale * maps_back(matmul(value, _t(by_context)))
            return by_query, by_key, matmul(maps, by_context), {}

        return matmul(mixes, context), back


class Linformer(SetMechanism):
    """Linformer: keys and values are projected to few rows along the sequence.

        softmax(scale · q (E k)ᵀ) F v

    with learned projections E and F (rank, tokens), the parameters `keys` and `values`, of which a
    call with fewer tokens takes the first columns; scale is 1/√(head size) unless given. All heads
    share them. Initially they are normal with variance 1/rank, which keeps products as they are on
    average. With rank = tokens and E = F = 1 it is soft-max attention.

    O(n r d) time for rank r, O(n d) memory, forward and backward. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Padding is the mask. Calls from several
    threads are safe.

    Raises
    ------
    ShapeError
        Where a call has more keys than `tokens`.

    References
    ----------
    Wang et al., Linformer: self-attention with linear complexity, arXiv:2006.04768.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((100, 16))
    >>> linformer = pa.create("linformer", dim=16, tokens=100, rank=100)
    >>> linformer.parameters.update({"keys": np.eye(100), "values": np.eye(100)})
    >>> np.allclose(linformer(x), pa.create("flash", dim=16)(x))
    True
    """

    config: LinformerConfig

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        tokens = self.config.tokens
        shape = (min(self.config.rank, tokens), tokens)
        deviation = shape[0] ** -0.5
        return {
            name: rng.normal(0, deviation, shape).astype(np.float32) for name in ("keys", "values")
        }

    def _set(self, query: Array, key: Array, value: Array) -> tuple[Array, Back]:
        count, tokens = key.shape[2], self.config.tokens
        if count > tokens:
            raise ShapeError("key", key.shape, f"at most {tokens} keys, as tokens={tokens} says")
        for_keys, for_values = (
            self.parameters[name][:, :count].astype(query.dtype) for name in ("keys", "values")
        )
        out, soft_back = soft_max(
            query,
            matmul(for_keys, key),
            matmul(for_values, value),
            self._scale(),
            self.config.threads,
        )

        def back(gradient: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
            by_query, by_keys, by_values = soft_back(gradient)
            parameters = {}
            for name, by, x in (("keys", by_keys, key), ("values", by_values, value)):
                full = np.zeros_like(self.parameters[name])
                full[:, :count] = matmul(by, _t(x)).sum(axis=(0, 1))
                parameters[name] = full
            return (
                by_query,
                matmul(for_keys.T, by_keys),
                matmul(for_values.T, by_values),
                parameters,
            )

        return out, back


class Nystrom(SetMechanism):
    """Nyströmformer: the soft-max matrix from its rows and columns at landmarks.

        softmax(q K̃ᵀ) · softmax(Q̃ K̃ᵀ)⁺ · softmax(Q̃ kᵀ) v

    of scaled products, where landmarks Q̃ and K̃ are means of segments of queries and keys, and the
    pseudo-inverse of A is approached by Z ← ¼ Z (13 − AZ (15 − AZ (7 − AZ))), from
    Z = Aᵀ / (‖A‖₁ ‖A‖_∞). With a landmark for each token and enough iterations it is soft-max
    attention. The first and
    last factor stream: neither is in memory as a whole. The depthwise convolution of the paper's
    layer is not part of it.

    O(n m d + m³) time for m landmarks, O(n d + m²) memory, forward and backward. Shapes and errors
    are those of :meth:`polyattn_core.mechanism.Mechanism.attend`. Padding is the mask: landmarks
    are means of visible keys. Calls from several threads are safe.

    References
    ----------
    Xiong et al., Nyströmformer: a Nyström-based algorithm for approximating self-attention,
    arXiv:2102.03902.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((20, 16))
    >>> exact = pa.create("flash", dim=16)(x)
    >>> nystrom = pa.create("nystrom", dim=16, landmarks=20, iterations=20)
    >>> np.allclose(nystrom(x), exact)
    True
    """

    config: NystromConfig

    def _set(self, query: Array, key: Array, value: Array) -> tuple[Array, Back]:
        count = min(self.config.landmarks, query.shape[2], key.shape[2])
        scale, limit = self._scale(), self.config.threads
        own, own_back = _segment_means(query, count)
        theirs, theirs_back = _segment_means(key, count)
        middle, middle_back = _normalised(query.dtype.type(scale) * (own @ _t(theirs)), -1)
        inverse, inverse_back = _pseudo_inverse(middle, self.config.iterations)
        last, last_back = soft_max(own, key, value, scale, limit)
        out, first_back = soft_max(query, theirs, inverse @ last, scale, limit)

        def back(gradient: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
            by_query, by_theirs, by_mixed = first_back(gradient)
            by_own, by_key, by_value = last_back(_t(inverse) @ by_mixed)
            by_middle = query.dtype.type(scale) * middle_back(inverse_back(by_mixed @ _t(last)))
            by_own = by_own + by_middle @ theirs
            by_theirs = by_theirs + _t(by_middle) @ own
            return by_query + own_back(by_own), by_key + theirs_back(by_theirs), by_value, {}

        return out, back


def _segment_means(x: Array, count: int) -> tuple[Array, Callable[[Array], Array]]:
    """Means of `count` segments as equal as can be, and the pullback."""
    tokens = x.shape[-2]
    starts = np.arange(count) * tokens // count
    sizes = np.diff(starts, append=tokens)
    weights = (1 / sizes).astype(x.dtype)[:, None]

    def back(gradient: Array) -> Array:
        return np.asarray(np.repeat(gradient * weights, sizes, axis=-2))

    return np.add.reduceat(x, starts, axis=-2) * weights, back


def _pseudo_inverse(matrix: Array, iterations: int) -> tuple[Array, Callable[[Array], Array]]:
    """By iteration, and its pullback. Rows of the matrix are positive and sum to 1."""
    columns = matrix.sum(axis=-2)
    largest = columns.argmax(axis=-1)[..., None]
    norm = np.take_along_axis(columns, largest, -1)[..., None]
    steps = [_t(matrix) / norm]
    one = np.eye(matrix.shape[-1], dtype=matrix.dtype)

    def polynomial(z: Array) -> tuple[Array, Array, Array, Array]:
        product = matrix @ z
        inner = 7 * one - product
        outer = 15 * one - product @ inner
        return product, inner, outer, 13 * one - product @ outer

    for _ in range(iterations):
        steps.append(0.25 * (steps[-1] @ polynomial(steps[-1])[-1]))

    def back(gradient: Array) -> Array:
        by_matrix = np.zeros_like(matrix)
        by_z = gradient
        for z in steps[-2::-1]:
            product, inner, outer, last = polynomial(z)
            quarter = 0.25 * by_z
            by_last = _t(z) @ quarter
            by_outer = -_t(product) @ by_last
            by_inner = -_t(product) @ by_outer
            by_product = -(by_last @ _t(outer)) - by_outer @ _t(inner) - by_inner
            by_matrix += by_product @ _t(z)
            by_z = quarter @ _t(last) + _t(matrix) @ by_product
        by_matrix += _t(by_z) / norm
        by_norm = -(by_z * steps[0]).sum(axis=(-2, -1), keepdims=True) / norm
        chosen = np.arange(matrix.shape[-1]) == largest
        by_matrix += by_norm * chosen[..., None, :]
        return by_matrix

    return steps[-1], back
