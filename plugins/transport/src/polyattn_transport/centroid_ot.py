"""Transport from queries to the centroids of the keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.largest import largest_of_blocks
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .centroids import Centroids, cluster
from .config import CentroidOTConfig
from .entropic import repeated, summed, times
from .potentials import Transport
from .visibility import visible_keys


class CentroidOT(Mechanism):
    """Keys become M centroids with mass, to which queries are transported: O(n M d).

        P v̄,   P_ic = exp(−½ scale ‖qᵢ − k̄_c‖² + fᵢ + g_c),   Σ_c P_ic = 1,   Σᵢ P_ic → n_q m_c

    where k̄_c and v̄_c are the means of the keys and values of cluster c, m_c its share of the keys
    and scale is 1/√(head size) unless given: a large cluster is attended to more, and no key for
    nothing. Clusters are those of :func:`polyattn_transport.centroids.cluster`, by head; potentials
    alternate from g = 0 as in `sinkhorn` and end with rows. With a centroid for every key, and
    keys that are distinct, it is `sinkhorn` of squared distances.

    O(n M d) time for each round of k-means and each iteration, O(n (M + d)) memory. Gradients
    take clusters as they are, of which centroids are the means, and are exact but where a key
    changes its cluster. Weights are those of keys: P_ic over the number of keys in c. Masks are
    padding masks. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Calls from several threads are safe.

    References
    ----------
    Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, arXiv:1306.0895.
    Vyas et al., Fast transformers with clustered attention, arXiv:2007.04825.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 1000, 8))
    >>> attention = pa.create("centroid-ot", dim=16, heads=2, centroids=4)
    >>> clusters = attention.clusters(x)
    >>> clusters.center.shape, clusters.mass.sum(axis=-1).round(6).tolist()
    ((1, 2, 4, 8), [[1.0, 1.0]])
    """

    config: CentroidOTConfig

    def clusters(self, key: Any, *, mask: Any = None) -> Centroids:
        """The clusters of head-level keys (…, heads, keys, size); leading axes are one."""
        config = self.config
        array = np.asarray(key)
        group = config.heads // config.key_heads
        query = np.repeat(array, group, axis=-3)[..., :1, :]
        call, _, _ = self._prepare(query, array, array, mask, None, False, None, {})
        return self._clusters(call)

    def _clusters(self, call: Call) -> Centroids:
        config = self.config
        return cluster(
            call.key, config.centroids, rounds=config.rounds, seed=config.seed,
            visible=visible_keys(call),
        )  # fmt: skip

    def _solved(self, call: Call, clusters: Centroids) -> Transport:
        config, query = self.config, call.query
        scale = config.scale or 1 / math.sqrt(config.head_dim)
        row = -0.5 * scale * np.einsum("bhqd,bhqd->bhq", query, query)
        center = clusters.center
        column = -0.5 * scale * np.einsum("bhcd,bhcd->bhc", center, center)
        # Nothing is brought to a cluster without keys.
        column = np.where(clusters.count > 0, column, column.dtype.type(-np.inf))
        alone = Call(query, center, center, call.shape)
        problem = Transport(
            alone, scale * query, repeated(call, center), row=row, column=repeated(call, column),
            masses=repeated(call, clusters.mass), threads=config.threads,
        )  # fmt: skip
        problem.solve(config.iterations, config.tolerance)
        return problem

    def _values(self, call: Call, clusters: Centroids) -> Array:
        value = np.where(clusters.visible[:, None, :, None], call.value, call.value.dtype.type(0))
        return np.asarray(clusters.means(value), call.dtype)

    def _forward(self, call: Call) -> Array:
        clusters = self._clusters(call)
        value = repeated(call, self._values(call, clusters))
        return self._solved(call, clusters).attend(value)[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        clusters = self._clusters(call)
        problem = self._solved(call, clusters)
        value = repeated(call, self._values(call, clusters))
        output, mass, request, state = problem.attend(value)
        scale = self.config.scale or 1 / math.sqrt(self.config.head_dim)
        size, group = call.query.shape[3], call.query.shape[1] // call.key.shape[1]

        def pullback(gradient: Array) -> Gradients:
            found = problem.gradients(request, state, mass, gradient)
            assert found.value is not None
            d_query = scale * (found.query[..., :size] - times(found.row[..., None], call.query))
            by_column = summed(found.column[..., None], group)
            d_center = summed(found.key[..., :size], group)
            d_center = d_center - scale * times(by_column, clusters.center)
            d_key = clusters.pull_back(d_center)
            d_value = clusters.pull_back(summed(found.value, group))
            return Gradients(d_query, d_key, d_value)

        return output, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        from polyattn_core.simd import engine

        clusters = self._clusters(call)
        value = repeated(call, self._values(call, clusters))
        output, _, request, state = self._solved(call, clusters).attend(value)
        taken = wanted - {"top_weights"}
        if wanted & {"entropy", "top_weights"}:
            taken |= {"weights"}
        found = engine.gather(request, state, taken)
        count = repeated(call, np.maximum(clusters.count, 1))
        label = repeated(call, clusters.label)
        visible = clusters.visible[:, None]
        if "entropy" in wanted:
            found["entropy"] += np.einsum("bhqc,bhc->bhq", found["weights"], np.log(count))
        if "column_mass" in wanted:
            each = np.take_along_axis(found["column_mass"] / count, label, axis=-1)
            found["column_mass"] = np.where(visible, each, 0)
        if wanted & {"weights", "top_weights"}:
            share = found["weights"] / count[:, :, None]

            def by_key(rows: slice) -> Array:
                each = np.take_along_axis(share[:, :, rows], label[:, :, None], axis=-1)
                return np.where(visible[:, :, None], each, 0)

            if "weights" in wanted:
                found["weights"] = by_key(slice(None))
            if "top_weights" in wanted:
                found |= largest_of_blocks(by_key, call.shape.queries, call.top)
        return output, {n: array for n, array in found.items() if n in wanted | {"top_keys"}}
