"""Multi-head latent attention: all heads read one small latent vector of each token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, merge_heads, split_heads
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.masks import MaskShape
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.positions import rotate
from polyattn_core.products import matmul
from polyattn_core.spec import MechanismSpec

from .config import LatentConfig, ScaledDotProductConfig
from .norms import NormPullback, rms_norm
from .softmax import ScaledDotProduct

_FEW = 16  # queries up to which attending in the latent space is cheaper


@dataclass(frozen=True, slots=True)
class LatentCache:
    """What tokens leave for later queries: `latent` + `rope_size` numbers each, for all heads."""

    latent: Array
    """(…, tokens, latent)."""
    rotary: Array
    """(…, tokens, rope_size), turned to its position."""

    @property
    def tokens(self) -> int:
        """Number of tokens held."""
        return int(self.latent.shape[-2])

    def extended(self, other: LatentCache) -> LatentCache:
        """These tokens, and those of `other` after them."""
        return LatentCache(
            np.concatenate((self.latent, other.latent), axis=-2),
            np.concatenate((self.rotary, other.rotary), axis=-2),
        )


class Latent(Mechanism):
    """Keys and values of all heads come from one latent vector, which is all a cache keeps.

        c = norm(D_k x_k + D_v x_v),   k_h = (U_h c, rope(R x_k)),   v_h = V_h c
        q_h = (Q_h z, rope(P_h z)),   z = x_q or norm(E x_q)
        output = concatₕ softmax(q_h·k_hᵀ/√(head_size + rope_size)) v_h · Oᵀ

    The rotary part of a key is apart ("decoupled") and shared by all heads, so that U can be
    absorbed: q·(U c) = (Uᵀ q)·c. With `absorbed`, heads attend to the latent vectors themselves, as
    one key head, and V follows on the result: the same numbers, without keys and values ever made.
    That pays where queries are few: it is the default up to 16. In self-attention, where x_k = x_v,
    D_k + D_v is the compression of the paper; with `tied` there is only D_k, and values must be the
    keys. The norm, with `norm`, divides a vector by √(mean square + norm_epsilon) and multiplies it
    by learned weights, as in DeepSeek's models.

    Parameters, (out, in): `compress.key`, and unless `tied` `compress.value` (latent, dim);
    `key.up` (heads · head_size, latent), `value.up` (heads · value_size, latent); `key.rotary`
    (rope_size, dim); `query.weight` (heads · head_size, dim or query_latent), `query.rotary`
    (heads · rope_size, the same); with `query_latent`, `query.down`; `output.weight` (dim, heads ·
    value_size); with `norm`, `latent_norm.weight` and, with `query_latent`, `query_norm.weight`.

    O(n² heads (head_size + rope_size + value_size)) time expanded, O(n_q n heads (latent +
    rope_size)) absorbed; O(n heads (head_size + value_size)) memory.

    Raises
    ------
    ShapeError
        By calls, where the head size of an input is not dim / heads.
    ArgumentError
        By calls with `tied`, where values are other tokens than keys.

    References
    ----------
    DeepSeek-AI, DeepSeek-V2, arXiv:2405.04434; the norms: section 3.1.2.

    Examples
    --------
    Decoding from a cache of 6 + 4 numbers a token, instead of 2 · 16:

    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((5, 16))
    >>> layer = pa.create("latent", dim=16, heads=2, latent=6, rope_size=4, causal=True)
    >>> cache = layer.compress(x)
    >>> cache.latent.shape, cache.rotary.shape
    ((5, 6), (5, 4))
    >>> np.allclose(layer.decode(x[-1:], cache), layer(x)[-1:])
    True
    """

    config: Any

    def __init__(self, config: LatentConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        scale = config.scale or 1 / math.sqrt(config.key_size + config.rope_size)
        inner = ScaledDotProductConfig(
            dim=config.heads, heads=config.heads, threads=config.threads, scale=scale,
            dropout=config.dropout,
        )  # fmt: skip
        self._attention = ScaledDotProduct(inner, spec=spec)

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        dim, latent, read = config.dim, config.latent, config.read_width
        width, value_width = config.heads * config.key_size, config.heads * config.value_width
        shapes = {
            "compress.key": (latent, dim), "compress.value": (latent, dim),
            "key.up": (width, latent), "value.up": (value_width, latent),
            "query.weight": (width, read), "output.weight": (dim, value_width),
        }  # fmt: skip
        if config.tied:
            del shapes["compress.value"]
        if config.query_latent:
            shapes["query.down"] = (read, dim)
        if config.rope_size:
            shapes["key.rotary"] = (config.rope_size, dim)
            shapes["query.rotary"] = (config.heads * config.rope_size, read)
        bounds = {name: math.sqrt(6 / sum(shape)) for name, shape in shapes.items()}  # Glorot
        arrays = {name: rng.uniform(-bounds[name], bounds[name], s) for name, s in shapes.items()}
        if config.norm:
            arrays["latent_norm.weight"] = np.ones(latent)
            if config.query_latent:
                arrays["query_norm.weight"] = np.ones(read)
        return arrays

    # ---- decoding -------------------------------------------------------------------------------

    def compress(self, key: Any, value: Any = None, *, start: int = 0) -> LatentCache:
        """What tokens (…, tokens, dim) at positions `start` … leave in a cache."""
        key = np.asarray(key)
        value = key if value is None else np.asarray(value)
        for name, array in (("key", key), ("value", value)):
            if array.ndim < 2 or array.shape[-1] != self.config.dim:
                raise ShapeError(name, array.shape, f"(…, tokens, dim={self.config.dim})")
        if start < 0:
            raise ArgumentError("start", start, "a whole number, at least 0")
        return LatentCache(self._latent(key, value)[0], self._rotary_key(key, start))

    def decode(self, query: Any, cache: LatentCache, *, mask: Any = None) -> Array:
        """Attend with the queries (…, tokens, dim) of the last tokens of a cache, absorbed."""
        query = np.asarray(query)
        if query.ndim < 2 or query.shape[-1] != self.config.dim:
            raise ShapeError("query", query.shape, f"(…, tokens, dim={self.config.dim})")
        lead = query.shape[:-2]
        if cache.latent.shape[:-2] != lead:
            raise ShapeError("cache", cache.latent.shape, f"leading axes {lead} like the query")
        shape = MaskShape(lead, self.config.heads, query.shape[-2], cache.tokens)

        def flat(array: Array) -> Array:
            return array.reshape((shape.batch, *array.shape[-2:]))

        combined = self.combined_mask(mask, shape)
        merged = self._absorbed(
            flat(query), LatentCache(flat(cache.latent), flat(cache.rotary)), shape, combined
        )
        return self._affine("output.weight", merged).reshape(query.shape)

    # ---- both forms -----------------------------------------------------------------------------

    def _forward(self, call: Call) -> Array:
        query, key, value = self._merged(call)
        absorbed = self.config.absorbed
        if absorbed is None:
            absorbed = call.shape.queries <= _FEW
        if absorbed:
            cache = LatentCache(self._latent(key, value)[0], self._rotary_key(key, 0))
            attended = self._absorbed(query, cache, call.shape, call.mask, call.bias, call.seed)
        else:
            attended = merge_heads(self._attention._forward(self._expanded(call, {})))
        return split_heads(self._affine("output.weight", attended), self.config.heads, "output")

    def _absorbed(
        self, query: Array, cache: LatentCache, shape: MaskShape, mask: Any,
        bias: Array | None = None, seed: int | None = None,
    ) -> Array:  # fmt: skip
        """Merged heads (batch, queries, heads · value size), before the last projection."""
        heads = self.config.heads
        read = self._read(query)[0]
        content = split_heads(self._affine("query.weight", read), heads, "query")
        up = self.parameters.cast("key.up", query.dtype)
        up = up.reshape(heads, -1, up.shape[1])
        absorbed = [matmul(content, up), self._rotary_query(read, shape)]
        keys = np.concatenate((cache.latent, cache.rotary), axis=-1)[:, None]
        inner = Call(
            np.concatenate(absorbed, axis=-1), keys, np.ascontiguousarray(cache.latent)[:, None],
            shape, mask, bias, seed,
        )  # fmt: skip
        found = self._attention._forward(inner)
        down = self.parameters.cast("value.up", query.dtype)
        return merge_heads(matmul(found, down.reshape(heads, -1, down.shape[1]).swapaxes(1, 2)))

    def _expanded(self, call: Call, kept: dict[str, Any]) -> Call:
        """Queries, keys and values of all heads; inputs of projections go into `kept`."""
        heads = self.config.heads
        query, key, value = self._merged(call)
        read, undo_read = self._read(query)
        latent, undo_latent = self._latent(key, value)
        kept.update(query=query, key=key, value=value, read=read, latent=latent)
        kept.update(undo_read=undo_read, undo_latent=undo_latent)
        rotary = self._rotary_key(key, 0)[:, None]
        rotary = np.broadcast_to(rotary, (len(key), heads, *rotary.shape[2:]))
        return replace(
            call,
            query=np.concatenate(
                (
                    split_heads(self._affine("query.weight", read), heads, "query"),
                    self._rotary_query(read, call.shape),
                ),
                axis=-1,
            ),
            key=np.concatenate(
                (split_heads(self._affine("key.up", latent), heads, "key"), rotary), axis=-1
            ),
            value=split_heads(self._affine("value.up", latent), heads, "value"),
        )

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        kept: dict[str, Any] = {}
        attended, pull = self._attention._vjp(self._expanded(call, kept))
        config, shape = self.config, call.shape
        heads, size = config.heads, config.key_size

        def pullback(gradient: Array) -> Gradients:
            learned: dict[str, Array] = {}

            def back(name: str, array: Array, incoming: Array) -> Array:
                flat = incoming.reshape(-1, incoming.shape[-1])
                # Hidden tokens have no gradient, and 0 · NaN must not make them one.
                live = np.any(flat, axis=1, keepdims=True)
                seen = np.where(live, array.reshape(-1, array.shape[-1]), 0)
                learned[name] = matmul(flat.T, seen, config.threads)
                return matmul(incoming, self.parameters.cast(name, array.dtype), config.threads)

            merged = back("output.weight", merge_heads(attended), merge_heads(gradient))
            found = pull(split_heads(merged, heads, "gradient"))
            d_read = back("query.weight", kept["read"], merge_heads(found.query[..., :size]))
            d_latent = back("key.up", kept["latent"], merge_heads(found.key[..., :size]))
            d_latent = d_latent + back("value.up", kept["latent"], merge_heads(found.value))
            if config.norm:
                d_latent, learned["latent_norm.weight"] = kept["undo_latent"](d_latent)
            d_key = back("compress.key", kept["key"], d_latent)
            d_value = np.zeros_like(kept["value"])
            if not config.tied:
                d_value = back("compress.value", kept["value"], d_latent)
            if config.rope_size:
                own = np.arange(shape.queries) + shape.keys - shape.queries
                turned = rotate(found.query[..., size:], own, config.position, inverse=True)
                d_read = d_read + back("query.rotary", kept["read"], merge_heads(turned))
                shared = found.key[..., size:].sum(axis=1)
                turned = rotate(shared, np.arange(shape.keys), config.position, inverse=True)
                d_key = d_key + back("key.rotary", kept["key"], turned)
            d_query = d_read
            if config.query_latent:
                if config.norm:
                    d_read, learned["query_norm.weight"] = kept["undo_read"](d_read)
                d_query = back("query.down", kept["query"], d_read)
            d_query, d_key, d_value = (
                split_heads(x, heads, "gradient") for x in (d_query, d_key, d_value)
            )
            return Gradients(d_query, d_key, d_value, found.bias, learned)

        output = self._affine("output.weight", merge_heads(attended))
        return split_heads(output, heads, "output"), pullback

    # ---- projections ----------------------------------------------------------------------------

    def _merged(self, call: Call) -> tuple[Array, Array, Array]:
        arrays = {"query": call.query, "key": call.key, "value": call.value}
        expected = (self.config.heads, self.config.head_dim)
        for name, array in arrays.items():
            if (array.shape[1], array.shape[3]) != expected:
                raise ShapeError(name, array.shape, f"{expected[0]} heads of size {expected[1]}")
        query, key, value = (merge_heads(array) for array in arrays.values())
        return query, key, value

    def _latent(self, key: Array, value: Array) -> tuple[Array, NormPullback | None]:
        """The latent vectors of tokens, and the pullback of their norm."""
        latent = self._affine("compress.key", key)
        if not self.config.tied:
            latent += self._affine("compress.value", value)
        elif value is not key and not np.array_equal(value, key, equal_nan=True):
            raise ArgumentError("value", "other tokens than the key", "the key: tied=True says so")
        return self._normed("latent_norm.weight", latent)

    def _read(self, query: Array) -> tuple[Array, NormPullback | None]:
        """What queries are projected from, and the pullback of its norm."""
        if not self.config.query_latent:
            return query, None
        return self._normed("query_norm.weight", self._affine("query.down", query))

    def _normed(self, name: str, array: Array) -> tuple[Array, NormPullback | None]:
        if not self.config.norm:
            return array, None
        weight = self.parameters.cast(name, array.dtype)
        return rms_norm(array, weight, self.config.norm_epsilon)

    def _affine(self, name: str, array: Array) -> Array:
        return matmul(array, self.parameters.cast(name, array.dtype).T, self.config.threads)

    def _rotary_key(self, key: Array, start: int) -> Array:
        if not self.config.rope_size:
            return np.zeros((*key.shape[:-1], 0), key.dtype)
        positions = np.arange(key.shape[-2]) + start
        return rotate(self._affine("key.rotary", key), positions, self.config.position)

    def _rotary_query(self, read: Array, shape: MaskShape) -> Array:
        heads = self.config.heads
        if not self.config.rope_size:
            return np.zeros((len(read), heads, shape.queries, 0), read.dtype)
        own = np.arange(shape.queries) + shape.keys - shape.queries
        split = split_heads(self._affine("query.rotary", read), heads, "query")
        return rotate(split, own, self.config.position)
