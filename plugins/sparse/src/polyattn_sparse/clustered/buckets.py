"""Soft-max attention within buckets: sorted by bucket, so that the engine skips all other tiles.

Each round sorts queries and keys by their buckets and attends where these are equal, apart from
pairs that met in a round before: their union is computed, and every pair once. Rounds have
normalisers of their own and merge by them. From the merged normaliser the gradient of each round is
that of its share of one soft-max.

Masks that show a query the first so many keys are honoured within buckets. Where they differ from
query to query, queries are sorted in between the keys of their bucket, each behind the last one
that it sees; the mask is then that of a triangle.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.masks.program import FAR, Primitive
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from ..visibility import visible_counts
from .config import BucketConfig

Buckets = list[tuple[Array, Array]]
"""For each round, those of queries (batch, heads, queries) and keys (batch, heads, keys)."""
_NOBODY, _NO_KEY = -1, -2


@dataclass(slots=True)
class _Sorted:
    """One round: which query and key is at each place of (batch · heads, places), or −1."""

    queries: Array
    keys: Array
    steps: tuple[Primitive, ...]


class BucketMechanism(Mechanism):
    """A mechanism that attends where queries and keys share a bucket."""

    config: BucketConfig

    @abstractmethod
    def _buckets(self, call: Call) -> Buckets:
        """Of each round."""

    def _forward(self, call: Call) -> Array:
        return self._attend(call)[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        out, logs, rounds = self._attend(call)

        def pullback(gradient: Array) -> Gradients:
            return self._gradients(call, out, logs, rounds, gradient)

        return out, pullback

    def recall(self, query: Any, key: Any, *, mask: Any = None, **side: Any) -> Array:
        """The share of exact attention's weights on the pairs that are computed.

        Parameters
        ----------
        query, key, mask, **side
            As in `attend`.

        Returns
        -------
        (…, heads, queries), from 0 to 1; 1 where nothing is visible. As dear as exact attention.
        """
        from .. import kernels

        key = np.asarray(key)
        call, lead, _ = self._prepare(query, key, key[..., :1], mask, None, False, None, side)
        logs = self._attend(call)[1].reshape(call.query.shape[:3])
        scale = self.config.scale or self.config.head_dim**-0.5
        steps = () if call.mask is None else call.mask.program(call.shape)
        request = kernels.request_of(
            call.query, call.key, call.value, scale, self.config.threads, steps
        )
        exact = kernels.forward(request)[1]
        seen = ~np.isneginf(exact)
        share = np.exp(np.where(seen, logs, 0) - np.where(seen, exact, 0))
        return np.asarray(share.reshape(*lead, *share.shape[1:]))

    def _attend(self, call: Call) -> tuple[Array, Array, list[_Sorted]]:
        """The output, its log-sum-exp, and the rounds."""
        from .. import kernels

        batch, heads, tokens = call.query.shape[:3]
        rounds = self._rounds(call)
        units = batch * heads
        total = np.full((units, tokens), -np.inf, call.dtype)
        out = np.zeros((units, tokens, call.value.shape[3]), call.dtype)
        for one in rounds:
            part, normaliser = kernels.forward(self._request(call, one))
            found = _unsorted(part[:, 0], one.queries, tokens)
            logs = _unsorted(normaliser[:, 0], one.queries, tokens, -np.inf)
            merged = np.logaddexp(total, logs)
            base = np.where(np.isneginf(merged), 0, merged)
            out *= np.exp(total - base)[..., None]
            out += np.exp(logs - base)[..., None] * found
            total = merged
        return out.reshape(batch, heads, tokens, -1), total, rounds

    def _gradients(
        self, call: Call, out: Array, logs: Array, rounds: list[_Sorted], gradient: Array
    ) -> Gradients:
        from .. import kernels

        batch, heads, tokens, size = call.query.shape
        key_heads, keys = call.key.shape[1:3]
        by_query = np.zeros((batch * heads, tokens, size), call.dtype)
        by_key = np.zeros((batch * heads, keys, size), call.dtype)
        by_value = np.zeros((batch * heads, keys, call.value.shape[3]), call.dtype)
        for one in rounds:
            parts = kernels.backward(
                self._request(call, one),
                _sorted(out, one.queries),
                _sorted(logs[..., None], one.queries, -np.inf)[..., 0],
                _sorted(gradient, one.queries),
            )
            by_query += _unsorted(parts[0][:, 0], one.queries, tokens)
            by_key += _unsorted(parts[1][:, 0], one.keys, keys)
            by_value += _unsorted(parts[2][:, 0], one.keys, keys)

        def gather(array: Array) -> Array:
            split = array.reshape(batch, key_heads, -1, *array.shape[1:])
            return np.asarray(split.sum(axis=2))

        return Gradients(by_query.reshape(call.query.shape), gather(by_key), gather(by_value))

    def _request(self, call: Call, one: _Sorted) -> Any:
        from .. import kernels

        group = call.query.shape[1] // call.key.shape[1]
        key, value = (np.repeat(x, group, axis=1) for x in (call.key, call.value))
        return kernels.request_of(
            _sorted(call.query, one.queries),
            _sorted(key, one.keys),
            _sorted(value, one.keys),
            self.config.scale or self.config.head_dim**-0.5,
            self.config.threads,
            one.steps,
        )

    def _rounds(self, call: Call) -> list[_Sorted]:
        keys = call.key.shape[2]
        counts = visible_counts(call.mask, call.shape, 0, keys)
        if counts is None:
            raise self._lacks(
                "masks that hide a key and show a later one: of its masks, only & and | are taken",
                "masks",
                "dense",
            )
        batch, heads, tokens = call.query.shape[:3]
        units = batch * heads
        seen = np.repeat(np.broadcast_to(counts, (batch, tokens)), heads, axis=0)
        alike = bool((counts == counts[:, :1]).all())
        found: list[_Sorted] = []
        before: Buckets = []
        for own, theirs in self._buckets(call):
            own, theirs = own.reshape(units, tokens), theirs.reshape(units, keys)
            if alike:
                # Nobody's bucket for the keys that are hidden from all.
                shown = np.where(np.arange(keys) < seen[:, :1], theirs, _NO_KEY)
                queries, places = (np.argsort(x, axis=1, kind="stable") for x in (own, shown))
                equal = _equal(own, shown, queries, places)
                steps = [equal, _near(equal, tokens), Primitive("and", (2,))]
            else:
                # A query that sees c keys comes behind key c − 1, which counts for c.
                bucket = np.concatenate((theirs, own), axis=1)
                behind = np.concatenate(
                    (np.broadcast_to(2 * np.arange(keys) + 2, theirs.shape), 2 * seen + 1), axis=1
                )
                order = np.lexsort((behind, bucket), axis=1)
                places = np.where(order < keys, order, -1)
                queries = np.where(order < keys, -1, order - keys)
                steps = [
                    _equal(own, theirs, queries, places),
                    Primitive("band", (-FAR, 0)),
                    Primitive("and", (2,)),
                ]
            for other in before:
                steps += [_equal(*other, queries, places), Primitive("not", (1,))]
                steps.append(Primitive("and", (2,)))
            found.append(_Sorted(queries, places, tuple(steps)))
            before.append((own, theirs))
        return found


def _equal(own: Array, theirs: Array, queries: Array, places: Array) -> Primitive:
    """Pairs of one bucket, in the order of these places."""
    return Primitive(
        "equal", (),
        np.concatenate(
            (_taken(own, queries, _NOBODY), _taken(theirs, places, _NO_KEY)), axis=1
        ).astype(np.int64),
    )  # fmt: skip


def _taken(array: Array, order: Array, fill: Any) -> Array:
    """array[unit, order], with `fill` at −1."""
    found = np.take_along_axis(array, np.maximum(order, 0), axis=1)
    return np.where(order < 0, found.dtype.type(fill), found)


def _sorted(array: Array, order: Array, fill: float = 0.0) -> Array:
    """(…, tokens, size) of all units, in an order: (units, 1, places, size)."""
    flat = array.reshape(-1, *array.shape[-2:])
    found = flat[np.arange(len(order))[:, None], np.maximum(order, 0)]
    if (order < 0).any():
        found[order < 0] = fill
    return found[:, None]


def _unsorted(array: Array, order: Array, tokens: int, fill: float = 0.0) -> Array:
    """(units, places, …) back in the order of the tokens."""
    found = np.full((len(order), tokens, *array.shape[2:]), fill, array.dtype)
    if order.shape[1] == tokens:
        found[np.arange(len(order))[:, None], order] = array
        return found
    unit, place = np.nonzero(order >= 0)
    found[unit, order[unit, place]] = array[unit, place]
    return found


def _near(equal: Primitive, queries: int) -> Primitive:
    """A band that holds all pairs of equal buckets, which are sorted: how far these lie apart.

    The engine looks at no tile beyond it.
    """
    assert equal.table is not None
    low, high = FAR, -FAR
    for row in equal.table:
        own, theirs = row[:queries], row[queries:]
        first = np.searchsorted(theirs, own, "left") - np.arange(queries)
        last = np.searchsorted(theirs, own, "right") - 1 - np.arange(queries)
        met = first <= last
        if met.any():
            low, high = min(low, int(first[met].min())), max(high, int(last[met].max()))
    return Primitive("band", (low, high))
