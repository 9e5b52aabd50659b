"""Attention by sliced Wasserstein distances between distributions of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, unbroadcast
from polyattn_core.errors import ArgumentError, DTypeError, ShapeError
from polyattn_core.largest import largest
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .config import SlicedWassersteinConfig
from .projections import CachedProjections, Sorted, Tokens, windows, windows_pullback


class SlicedWasserstein(Mechanism):
    """Soft-max over the transport costs between the distributions that queries and keys are.

        softmaxⱼ(−sharpness · SWₚᵖ(νᵢ, μⱼ)) v   over the candidates j of query i
        SWₚᵖ(ν, μ) = 1/L Σ_l ∫₀¹ |F⁻¹_{θ_l ν}(u) − F⁻¹_{θ_l μ}(u)|ᵖ du

    where F⁻¹ are the quantile functions of the distributions' projections on L random directions
    θ_l, orthogonal in blocks. A distribution puts equal mass on

    * the numbers of a token set, where sets are passed: ``key_tokens`` (…, key heads, keys, set
      size, head size) with ``key_lengths`` of those that are not full, ``query_tokens`` likewise;
      :func:`polyattn_transport.projections.sets_from_offsets` makes them from ragged ones;
    * else the last `window` tokens, its own included (before the first token, that again), hidden
      ones too;
    * with the window of 1, the default, the token alone: then SW₂² = 1/L Σ (θ_l·(q − k))², an
      estimate of ‖q − k‖² ÷ head size.

    Two stages: the candidates of a query are the `candidates` visible keys with the highest
    2q·k − ‖k‖², the nearest ones; of `query` and `key`, so where sets are passed, pass their means
    there. Costs are computed for these alone.

    Projections are held exactly, as `bins` quantiles of the levels (i + ½)/bins, or as cumulative
    histograms, whose mean absolute difference is W₁ up to the width of a bin. Those of keys are
    kept for the next call: see :attr:`cached`.

    O(n² d + n L S (log S + candidates)) time for sets of S tokens, O(n (d + L S + candidates))
    memory. Gradients take candidates as they are; none with histograms. Weights are of size queries
    × keys on request only. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Calls from several threads are safe.

    References
    ----------
    Bonneel et al., Sliced and Radon Wasserstein barycenters of measures,
    doi:10.1007/s10851-014-0506-3. Kolouri et al., Generalized sliced Wasserstein distances,
    arXiv:1902.00434.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> sets = rng.standard_normal((1, 3, 20, 4)) * np.array([[0.1], [1.0], [3.0]])[..., None]
    >>> attention = pa.create("sliced-wasserstein", dim=4, sharpness=50.0)
    >>> means = sets.mean(axis=-2)  # all near 0: points do not tell these sets apart
    >>> wide = 3 * rng.standard_normal((1, 1, 30, 4))
    >>> attention.attend(
    ...     means[:, :1], means, np.eye(3)[None], key_tokens=sets, query_tokens=wide
    ... ).round(2)
    array([[[0., 0., 1.]]])
    """

    config: SlicedWassersteinConfig

    def __init__(self, config: SlicedWassersteinConfig, *, spec: Any) -> None:
        super().__init__(config, spec=spec)
        self.cached = CachedProjections(config)
        """Directions, and the sorted projections of the last call's keys."""

    def _forward(self, call: Call) -> Array:
        return self._attended(call).output

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        from .kernels import launch

        if self.config.representation == "histogram":
            raise self._lacks(
                'gradients with representation="histogram"; "exact" and "quantiles" do'
            )
        one, config = self._attended(call), self.config

        def pullback(gradient: Array) -> Gradients:
            d_x, d_y, d_value = launch.gradients(
                one.index, one.x, one.y, call.value, config.sharpness, config.power, one.weights,
                gradient, config.threads,
            )  # fmt: skip
            d_query, side = self._returned(call, "query", d_x)
            d_key, more = self._returned(call, "key", d_y)
            return Gradients(d_query, d_key, d_value, side={**side, **more})

        return one.output, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        one = self._attended(call)
        found: dict[str, Array] = {"log_sum_exp": one.log_sum_exp}
        batch, heads, queries, _ = one.index.shape
        keys = call.key.shape[2]
        if "entropy" in wanted:
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(one.weights > 0, one.weights * np.log(one.weights), 0)
            found["entropy"] = -terms.sum(axis=-1)
        place = np.where(one.index < 0, keys, one.index).astype(np.int64)
        if "weights" in wanted:
            # One column more, for candidates that there are not.
            weights = np.zeros((batch, heads, queries, keys + 1), call.dtype)
            np.put_along_axis(weights, place, one.weights, axis=-1)
            found["weights"] = weights[..., :keys]
        if "column_mass" in wanted:
            rows = np.arange(batch * heads).reshape(batch, heads, 1, 1) * (keys + 1)
            mass = np.bincount(
                (place + rows).ravel(), one.weights.ravel(), batch * heads * (keys + 1)
            )
            shaped = mass.reshape(batch, heads, keys + 1)[..., :keys]
            found["column_mass"] = np.ascontiguousarray(shaped, call.dtype)
        if "top_weights" in wanted:
            found |= largest(one.weights, call.top, one.index)
        return one.output, {n: array for n, array in found.items() if n in wanted | {"top_keys"}}

    def _attended(self, call: Call) -> _Attended:
        from .kernels import launch

        config = self.config
        index = launch.filtered(self._filter(call), config.candidates)
        x = self.cached.of(self._tokens(call, "query"))
        y = self.cached.of_keys(self._tokens(call, "key"))
        output, weights, logs = launch.attend(
            index, x, y, call.value, config.sharpness, config.power, config.threads
        )
        return _Attended(index, x, y, output, weights, logs)

    def _filter(self, call: Call) -> Any:
        """Scores 2q·k − ‖k‖²."""
        from polyattn_core.simd import masking
        from polyattn_core.simd.engine import Request

        query, key = call.query, call.key
        request = Request(query, key, call.value, 2.0, threads=self.config.threads)
        nearness = -np.einsum("bhkd,bhkd->bhk", key, key)
        by_head = np.repeat(nearness, query.shape[1] // key.shape[1], axis=1)
        batch, heads, keys = by_head.shape
        request.bias = np.broadcast_to(by_head[:, :, None], (batch, heads, query.shape[2], keys))
        request.bias_batch = np.arange(batch)
        if call.mask is not None:
            request.mask = masking.encode(call.mask.program(call.shape))
        request.mask_queries, request.mask_keys = call.shape.queries, keys
        return request

    def _tokens(self, call: Call, which: str) -> Tokens:
        """The distributions of queries or keys."""
        points = call.query if which == "query" else call.key
        given = call.side.get(f"{which}_tokens")
        lengths = call.side.get(f"{which}_lengths")
        if given is None:
            if lengths is not None:
                raise ArgumentError(f"{which}_lengths", "lengths", f"{which}_tokens= besides them")
            return windows(points, self.config.window)
        return _checked_sets(given, lengths, points, call, which)

    def _returned(self, call: Call, which: str, gradient: Array) -> tuple[Array, dict[str, Array]]:
        """The gradient by queries or keys, or by the sets that were passed for them."""
        points = call.query if which == "query" else call.key
        by_sets = self.cached.pull_back(self._tokens(call, which), gradient)
        given = call.side.get(f"{which}_tokens")
        if given is None:
            return windows_pullback(by_sets), {}
        given = np.asarray(given)
        full = by_sets.reshape((*call.shape.lead, *by_sets.shape[1:]))
        summed = unbroadcast(full, given.shape).astype(given.dtype, copy=False)
        return np.zeros_like(points), {f"{which}_tokens": summed}


@dataclass(slots=True)
class _Attended:
    """All that a call computes."""

    index: Array
    x: Sorted
    y: Sorted
    output: Array
    weights: Array
    log_sum_exp: Array


def _checked_sets(given: Any, lengths: Any, points: Array, call: Call, which: str) -> Tokens:
    name = f"{which}_tokens"
    array = as_array(given, name)
    heads, tokens, size = points.shape[1:]
    shape = (*call.shape.lead, heads, tokens, array.shape[-2] if array.ndim > 1 else 0, size)
    accepted = f"(…, {heads} heads, {tokens} tokens, set size, {size}), leading axes like {which}"
    if array.ndim < 4 or array.shape[-2] == 0:
        raise ShapeError(name, array.shape, accepted)
    try:
        full = np.broadcast_to(array, shape)
    except ValueError:
        raise ShapeError(name, array.shape, accepted) from None
    sets = full.reshape((-1, *shape[-4:])).astype(call.dtype, copy=False)
    if lengths is None:
        return Tokens(sets, np.full(sets.shape[:3], shape[-2]))
    counts = np.asarray(lengths)
    if counts.dtype.kind not in "iu":
        raise DTypeError(f"{which}_lengths", counts.dtype, "whole numbers")
    try:
        counts = np.broadcast_to(counts, shape[:-2]).reshape(sets.shape[:3])
    except ValueError:
        raise ShapeError(
            f"{which}_lengths", counts.shape, f"a shape that broadcasts to {shape[:-2]}"
        ) from None
    if counts.min() < 1 or counts.max() > shape[-2]:
        raise ArgumentError(
            f"{which}_lengths",
            f"{counts.min()} … {counts.max()}",
            f"1 … {shape[-2]} tokens of a set",
        )
    return Tokens(sets, counts.astype(np.int64))
