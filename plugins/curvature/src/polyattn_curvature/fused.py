"""Mixed curvature in one weighted dot product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError
from polyattn_core.geometry import (
    Profile,
    RadialPullback,
    arctan_k,
    arctan_k_slope,
    lengths,
    radial,
)
from polyattn_core.mechanism import Call, Gradients
from polyattn_core.partial import PartialState

from .mapped import Mapped, Undo, by_group
from .quantiser import ComponentQuantizer, PackedVectors

MapPullback = Callable[[Array], tuple[Array, Array, Array]]
"""Gradient by tangent vectors → gradients by vectors, by κ_H and by κ_S of each head."""


class MixedCurvatureFusedAttention(Mapped):
    """Flat, hyperbolic and spherical similarity in one pass over one dot product.

        softmax(scale · (w_E q_E·k_E + w_H log₀ q_H · log₀ k_H + w_S log₀ q_S · log₀ k_S)) v

    A head is a point of E × H × S. Its hyperbolic slice (a point of the Poincaré ball) and its
    spherical slice (a point in stereographic coordinates) are mapped to the tangent spaces at the
    origins, log₀ x = artanh(√−κ‖x‖)/√−κ · x̂ and arctan(√κ‖x‖)/√κ · x̂. There similarity is a dot
    product, so that with the weights on the side of the query the whole is a plain streaming
    product of concatenated slices: no distance is computed for any pair.

    Parameters are `weights` (heads, 3) for E, H, S, and ln |κ| as `curvature_h.log` and
    `curvature_s.log` (key heads,).

    O(n² d) time, O(n d) memory; the maps take O(n d).

    References
    ----------
    Bachmann et al., Constant curvature graph convolutional networks, arXiv:1911.05076, for the
    maps; Skopek et al., Mixed-curvature variational autoencoders, arXiv:1911.08411, for products.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> fused = pa.create(
    ...     "fused-mixed-curvature", dim=8, heads=2, euclidean_dim=4, hyperbolic_dim=2,
    ...     spherical_dim=2,
    ... )
    >>> fused.config.sizes
    (2, 1, 1)
    >>> x = 0.3 * np.random.default_rng(0).standard_normal((5, 8))
    >>> _, pullback = fused.vjp(x)
    >>> pullback(np.ones((5, 8))).parameters["weights"].shape
    (2, 3)
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config, keys = self.config, self._key_heads
        weights = (config.weight_e, config.weight_h, config.weight_s)
        return {
            **super()._initial_parameters(rng),
            "weights": np.tile(np.asarray(weights, np.float64), (config.heads, 1)),
            "curvature_h.log": np.full(keys, np.log(-config.curvature_h)),
            "curvature_s.log": np.full(keys, np.log(config.curvature_s)),
        }

    def _map(self, call: Call) -> tuple[Call, Undo]:
        query, key, turned = self._turned(call)
        group = query.shape[1] // key.shape[1]
        kappa = self._curvatures()
        queries, pull_query = self._tangent(query, np.repeat(kappa, group, axis=0), "query")
        keys, pull_key = self._tangent(key, kappa, "key")
        factor = self._factor(call.dtype)

        def undo(gradients: Gradients) -> None:
            live = np.any(gradients.query, axis=-1, keepdims=True)
            by = np.where(live, gradients.query * queries, 0).sum(axis=(0, 2), dtype=np.float64)
            ends = np.cumsum(self.config.sizes)[:-1]
            weights = [part.sum(axis=-1) for part in np.split(by, ends, axis=-1)]
            d_query, *of_query = pull_query(gradients.query * factor)
            d_key, *of_key = pull_key(gradients.key)
            gradients.query, gradients.key = turned(d_query, d_key)
            found = gradients.parameters
            found["weights"] = np.stack(weights, axis=-1)
            for place, name in enumerate(("curvature_h.log", "curvature_s.log")):
                by_kappa = by_group(of_query[place], group) + of_key[place]
                found[name] = by_kappa * kappa[:, place]

        return replace(call, query=queries * factor, key=keys), undo

    def _curvatures(self) -> Array:
        """(key heads, 2): κ of the hyperbolic and of the spherical component."""
        logs = [self.parameters[f"curvature_{name}.log"] for name in "hs"]
        return np.stack((-np.exp(logs[0]), np.exp(logs[1])), axis=1)

    def _factor(self, dtype: Any) -> Array:
        """Weights of the coordinates of a query, (heads, 1, size)."""
        return np.repeat(self.parameters["weights"], self.config.sizes, axis=1)[:, None].astype(
            dtype
        )

    def _tangent(self, array: Array, kappa: Array, argument: str) -> tuple[Array, MapPullback]:
        """Slices in their tangent spaces; `kappa` (heads, 2)."""
        config = self.config
        e, h, _ = config.sizes
        result = np.empty(array.shape, array.dtype)
        result[..., :e] = array[..., :e]
        pulls: list[RadialPullback | None] = []
        for place, part in enumerate((slice(e, e + h), slice(e + h, None))):
            vectors = array[..., part]
            if not vectors.shape[-1]:
                pulls.append(None)
                continue
            r = lengths(vectors)
            limit = np.inf
            if place == 0:
                limit = np.tanh(config.max_radius / 2)
                self._check(r, kappa[:, 0], limit, argument)
            profile = _logarithm(kappa[:, place, None], limit)
            _, pull = radial(vectors, profile, r, result[..., part])
            pulls.append(pull)

        def pullback(gradient: Array) -> tuple[Array, Array, Array]:
            found = gradient.copy()
            by = [np.zeros(array.shape[1]), np.zeros(array.shape[1])]
            for place, part in enumerate((slice(e, e + h), slice(e + h, None))):
                pull = pulls[place]
                if pull is not None:
                    found[..., part], partials = pull(np.ascontiguousarray(gradient[..., part]))
                    by[place] = partials["curvature"]
            return found, by[0], by[1]

        return result, pullback

    def _check(self, r: Array, kappa: Array, limit: float, argument: str) -> None:
        if self.config.outside != "refuse":
            return
        z = np.sqrt(-kappa)[:, None] * r
        far = np.where(np.isfinite(z), z, 0).max()
        if far > limit * (1 + 1e-12):
            raise ArgumentError(
                argument,
                f"a hyperbolic part of length {far:.9g} in units of the ball's radius",
                f"at most {limit:.9g} (max_radius={self.config.max_radius:g}), or "
                "outside='project'",
            )


def _logarithm(kappa: Array, limit: float) -> Callable[[Array], Profile]:
    """log₀ of points of which none is beyond `limit` radii of the ball."""

    def profile(r: Array) -> Profile:
        most = limit / np.sqrt(np.abs(kappa))
        inside = ~(r > most)
        z = np.minimum(r, most)
        new = arctan_k(z, kappa)
        safe = np.where(r > 0, r, 1)

        def by_kappa() -> Array:
            # What is moved to the limit has a constant √|κ| log₀.
            found = np.where(inside, arctan_k_slope(z, kappa), -new / (2 * kappa))
            return np.where(r > 0, found / safe, 0)

        return Profile(
            np.where(r > 0, new / safe, 1),
            lambda: np.where(inside, 1 / (1 + kappa * np.square(z)), 0),
            {"curvature": by_kappa},
        )

    return profile


class QuantisedMixedCurvature(MixedCurvatureFusedAttention):
    """Fused mixed curvature over keys in a quarter of the memory.

        softmax(scale · Σ_c w_c log₀ q_c · k̂_c) v,   k̂ = s · round(log₀ k / s)

    with 8 bits for a Euclidean coordinate of k̂ and 5 for a hyperbolic or spherical one, and a step
    s = max|log₀ k_c| / (2^(bits − 1) − 1) of each key and component, so that no
    coordinate is off by more than s/2, and no score by more than scale · Σ |w_c| s_c ‖log₀ q_c‖₁/2.
    Keys are packed bit by bit; attention unpacks `chunk` of them at a time and merges the parts.
    :meth:`pack` keeps packed keys for many calls of :meth:`attend_packed`.

    Rounding has no useful derivative: train `fused-mixed-curvature` and copy its parameters.

    O(n² d) time, O(n d) memory, of which keys take `bits`/32.

    References
    ----------
    Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, arXiv:1712.05877; maps as in Bachmann et al., arXiv:1911.05076.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = 0.1 * np.random.default_rng(0).standard_normal((1, 100, 64), np.float32)
    >>> packed = pa.create("quantised-mixed-curvature", dim=64).pack(x)
    >>> packed.nbytes, x.nbytes
    (6400, 25600)
    """

    @property
    def quantizer(self) -> ComponentQuantizer:
        """What packs the keys of a head."""
        config = self.config
        return ComponentQuantizer(config.sizes, (config.bits_e, config.bits_h, config.bits_s))

    def pack(self, key: Any) -> PackedVectors:
        """Keys (…, key heads, keys, head size), log-mapped and packed. Positions are not in it."""
        array = np.asarray(key)
        packed = self._packed(array.reshape((-1, *array.shape[-3:])))
        return PackedVectors(
            *(x.reshape((*array.shape[:-1], x.shape[-1])) for x in (packed.codes, packed.steps))
        )

    def _packed(self, key: Array) -> PackedVectors:
        """Keys (batch, key heads, keys, head size), mapped in double precision."""
        kappa, quantizer = self._curvatures(), self.quantizer
        parts = [
            quantizer.pack(self._tangent(part.astype(np.float64), kappa, "key")[0])
            for part in np.split(key, range(self.config.chunk, key.shape[2], self.config.chunk), 2)
        ]
        return PackedVectors(
            np.concatenate([part.codes for part in parts], axis=2),
            np.concatenate([part.steps for part in parts], axis=2),
        )

    def attend_packed(self, query: Any, packed: PackedVectors, value: Any, **options: Any) -> Array:
        """`attend` with keys from :meth:`pack`; options are those of `attend`.

        Rotary positions turn keys before they are packed, so they do not go together.
        """
        if getattr(self.config.position, "kind", None) == "rope":
            raise ArgumentError("position", "rope", "another position axis for packed keys")
        query, value = np.asarray(query), np.asarray(value)
        shape = (*packed.codes.shape[:-1], query.shape[-1])
        stand_in = np.broadcast_to(np.zeros((), query.dtype), shape)
        call, _, dtype = self._prepare(
            query, stand_in, value, options.pop("mask", None), None, False, None, options
        )
        lead = call.shape.lead
        own = packed.broadcast(lead)
        state = self._over_chunks(call, own)
        return state.output.reshape((*lead, *state.output.shape[1:])).astype(dtype)

    def _forward(self, call: Call) -> Array:
        return self._partial(call).output

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        state = self._partial(call)
        return state.output, {"log_sum_exp": state.log_sum_exp} if wanted else {}

    def _partial(self, call: Call) -> PartialState:
        query, key, _ = self._turned(call)
        return self._over_chunks(replace(call, query=query), self._packed(key))

    def _over_chunks(self, call: Call, packed: PackedVectors) -> PartialState:
        group = call.query.shape[1] // packed.codes.shape[1]
        kappa = np.repeat(self._curvatures(), group, axis=0)
        query, _ = self._tangent(call.query, kappa, "query")
        query = query * self._factor(call.dtype)
        quantizer, step = self.quantizer, self.config.chunk
        total: PartialState | None = None
        for start in range(0, packed.codes.shape[2], step):
            part = slice(start, start + step)
            chunk = replace(
                call,
                query=query,
                key=quantizer.unpack(packed[:, :, part], call.dtype),
                value=call.value[:, :, part],
                key_start=call.key_start + start,
            )
            state = super(Mapped, self)._partial(chunk)
            total = state if total is None else total.merge(state)
        assert total is not None
        return total
