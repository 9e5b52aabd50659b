"""The mechanisms `lsh` and `routing`."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.mechanism import Call

from .buckets import BucketMechanism, Buckets
from .config import LshConfig, RoutingConfig
from .reference import default_buckets, default_centroids, hashed, nearest


class Lsh(BucketMechanism):
    """LSH attention: soft-max over the keys that hash like the query, in any of several rounds.

        softmax(scale · q·kᵀ) v   over   { j : h_r(q) = h_r(kⱼ) for some round r }
        h_r(x) = argmax (x R_r, −x R_r)

    where R_r (head size, buckets/2) is normally distributed, drawn from `seed`, and scale is
    1/√(head size) unless given. Tokens of like direction likely share a bucket, and they are those
    with large weights. A pair that meets in several rounds counts once. Queries and keys are hashed
    each by themselves: the paper's shared queries and keys are a call with the same array. It cuts
    sorted tokens into chunks of equal length; here buckets are computed whole. A query in whose
    buckets there is no visible key gets 0. Gradients are those of the soft-max, buckets held fixed.

    O(rounds · n (d · buckets + bucket · d)) time for buckets of so many keys, and a test for each
    tile of 64 × 64, O(n d) memory. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Masks are causal, padding and prefix masks,
    and what & and | make of them. Calls from several threads are safe.

    References
    ----------
    Kitaev et al., Reformer: the efficient transformer, arXiv:2001.04451.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((100, 16))
    >>> one = pa.create("lsh", dim=16, buckets=1)  # all in one
    >>> np.allclose(one(x), pa.create("flash", dim=16)(x))
    True
    """

    config: LshConfig

    def _buckets(self, call: Call) -> Buckets:
        config = self.config
        count = config.buckets or default_buckets(call.key.shape[2])
        group = call.query.shape[1] // call.key.shape[1]
        return [
            (own, np.repeat(theirs, group, axis=1))
            for own, theirs in zip(
                *(hashed(x, count, config.rounds, config.seed) for x in (call.query, call.key)),
                strict=True,
            )
        ]


class Routing(BucketMechanism):
    """Routing attention: soft-max over the keys that are nearest to the same centroid.

        softmax(scale · q·kᵀ) v   over   { j : argmax_c μ_c·kⱼ = argmax_c μ_c·q }

    where μ are unit vectors and scale is 1/√(head size) unless given. Centroids are the side input
    `centroids` (heads, clusters, size); without it they are random directions, drawn from `seed`.
    :meth:`learn` moves them towards the tokens that are nearest to them, by spherical k-means in
    moving averages, as the paper does along with training; calls never move them, so that a causal
    call does not hang on later tokens. Every token has one cluster; the paper gives clusters equal
    numbers of tokens instead. A query without a visible key in its cluster gets 0. Gradients are
    those of the soft-max, clusters held fixed.

    O(n d (clusters + cluster)) time for clusters of so many keys, and a test for each tile of
    64 × 64, O(n d) memory. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Masks are causal, padding and prefix masks,
    and what & and | make of them. Calls from several threads are safe.

    References
    ----------
    Roy et al., Efficient content-based sparse attention with routing transformers,
    arXiv:2003.05997.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
    >>> routing = pa.create("routing", dim=2, clusters=2)
    >>> weights = routing(x, x, np.eye(4), centroids=np.eye(2)[None])
    >>> (weights > 0).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [0, 0, 1, 1],
           [0, 0, 1, 1]])
    """

    config: RoutingConfig

    def _buckets(self, call: Call) -> Buckets:
        centroids = self._checked(call.side.get("centroids"))
        group = call.query.shape[1] // call.key.shape[1]
        key = np.repeat(call.key, group, axis=1)
        return [(nearest(call.query, centroids), nearest(key, centroids))]

    def _checked(self, centroids: Any) -> Array:
        config = self.config
        shape = (config.heads, config.clusters, config.head_dim)
        if centroids is None:
            return np.asarray(default_centroids(*shape, config.seed))
        array = as_array(centroids, "centroids")
        if array.shape != shape:
            raise ShapeError("centroids", array.shape, f"(heads, clusters, head size) {shape}")
        return array.astype(np.float64)

    def learn(self, query: Any, key: Any, centroids: Any = None, *, rate: float = 1.0) -> Array:
        """Centroids moved towards the mean direction of their queries and keys.

        Parameters
        ----------
        query, key
            As in `attend`: (…, heads, queries, size) and (…, key heads, keys, size).
        centroids
            Where to start; the random ones by default. Not changed.
        rate
            How far, above 0 and at most 1. A centroid without tokens stays.

        Returns
        -------
        (heads, clusters, size), unit vectors in float64.
        """
        if not 0 < rate <= 1:
            raise ArgumentError("rate", rate, "a number above 0 and at most 1")
        moved = self._checked(centroids).copy()
        heads, size = moved.shape[0], moved.shape[2]
        tokens: list[Array] = []
        for name, given in (("query", query), ("key", key)):
            array = as_array(given, name)
            if array.ndim < 3 or array.shape[-1] != size or heads % array.shape[-3]:
                raise ShapeError(name, array.shape, f"(…, {heads} heads, tokens, {size})")
            spread = np.repeat(array, heads // array.shape[-3], axis=-3)
            tokens.append(np.moveaxis(spread, -3, 0).reshape(heads, -1, size).astype(np.float64))
        both = np.concatenate(tokens, axis=1)
        lengths = np.linalg.norm(both, axis=-1, keepdims=True)
        both /= np.where(lengths == 0, 1, lengths)
        for own, x, chosen in zip(moved, both, nearest(both, moved), strict=True):
            for c in np.unique(chosen):
                mean = x[chosen == c].mean(axis=0)
                towards = (1 - rate) * own[c] + rate * mean / max(np.linalg.norm(mean), 1e-300)
                own[c] = towards / max(np.linalg.norm(towards), 1e-300)
        return moved
