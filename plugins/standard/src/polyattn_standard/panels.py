"""Mechanisms whose rule needs all keys of a query, or all heads, at once.

They are computed a panel at a time: a few queries against all keys, of one batch element and all
heads. A panel is dropped before the next is made, so that memory grows with the keys alone;
backward passes make each panel anew. Threads share the panels.
"""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, unbroadcast
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.positions import Alibi, T5Bias, alibi_slopes, t5_buckets
from polyattn_core.products import shared

from .panel_positions import add_table, all_distances, kept, rows_of
from .rows import VisibleRows

_PANEL = 1 << 20  # scores of a panel: a few MB, for enough rows that products of matrices are fast


@dataclass(slots=True)
class Panel:
    """Some queries of one batch element, and everything they attend to."""

    batch: int
    rows: slice
    query: Array
    """(heads, rows, size)."""
    key: Array
    """(key heads, keys, size), or as the mechanism laid them out."""
    value: Array
    """(key heads, keys, size)."""
    visible: Array | None
    """(heads or 1, rows, keys), or None where everything is."""
    sums: dict[str, Array] = field(default_factory=dict)
    """Where a backward pass adds up gradients: `query` of the panel, `key`, learned arrays."""

    @property
    def keys(self) -> int:
        """How many there are."""
        return int(self.value.shape[1])


class PanelMechanism(Mechanism):
    """A mechanism computed in panels. Subclasses give the scores, the weights and their pullbacks.

    Hidden scores are −∞ when weights are made of them, and their weights have to be 0. Positions
    that are biases of scores are added here, where the configuration has them.
    """

    config: Any

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        position = getattr(self.config, "position", None)
        if not isinstance(position, T5Bias):
            return {}
        shape = (self.config.heads, position.buckets)
        return {"position.table": rng.normal(0, 0.02, shape).astype(np.float32)}

    @abstractmethod
    def _scores(self, panel: Panel) -> tuple[Array, Any]:
        """Scores (heads, rows, keys) before cap, bias and mask, and what the pullback needs."""

    @abstractmethod
    def _scores_pullback(self, panel: Panel, tape: Any, gradient: Array) -> None:
        """Add the gradients by `query`, `key` and learned arrays to the sums of the panel."""

    @abstractmethod
    def _weights(self, panel: Panel, scores: Array) -> tuple[Array, Any]:
        """Weights (heads, rows, keys) of scores, and what the pullback needs."""

    @abstractmethod
    def _weights_pullback(self, panel: Panel, tape: Any, gradient: Array) -> Array:
        """The gradient by scores."""

    # ---- one panel ----------------------------------------------------------------------------

    def _attended(
        self, call: Call, panel: Panel
    ) -> tuple[Array, Array, tuple[Any, Any, Array, Array | None]]:
        """Output, weights, and the tapes with the slope of the cap and the factors of dropout."""
        position = getattr(self.config, "position", None)
        scores, tape = self._scores(panel)
        slope = np.ones((1, 1, 1), scores.dtype)
        if isinstance(position, Alibi):
            by_distance = -alibi_slopes(len(scores))[:, None] * abs(all_distances(call))
            scores = scores + rows_of(by_distance.astype(scores.dtype), panel)
        if self.config.softcap is not None:
            bent = np.tanh(scores / self.config.softcap)
            scores, slope = self.config.softcap * bent, 1 - bent * bent
        if isinstance(position, T5Bias):
            table = self.parameters.cast("position.table", scores.dtype)
            scores = scores + rows_of(table[:, t5_buckets(all_distances(call), position)], panel)
        if call.bias is not None:
            scores = scores + _panel_of(call, call.bias, panel)
        if panel.visible is not None:
            scores = np.where(panel.visible, scores, -np.inf)
        weights, second = self._weights(panel, scores)
        factors = None
        if call.seed is not None:
            keep = 1 - self.config.dropout
            stays = kept(call.seed, panel, weights.shape, keep)
            factors = stays * weights.dtype.type(1 / keep)
            weights = weights * factors
        output = product(weights, panel.value, panel.visible)
        return output, weights, (tape, second, slope, factors)

    def _pulled_back(self, call: Call, panel: Panel, gradient: Array) -> None:
        _, weights, (tape, second, slope, factors) = self._attended(call, panel)
        heads, key_heads = len(weights), len(panel.value)
        panel.sums["value"][panel.batch] += by_group(weights, key_heads).swapaxes(1, 2) @ by_group(
            gradient, key_heads
        )
        by_weight = by_group(gradient, key_heads) @ panel.value.swapaxes(1, 2)
        by_weight = by_weight.reshape(heads, -1, by_weight.shape[-1])
        if panel.visible is not None:
            by_weight = np.where(panel.visible, by_weight, 0)
        if factors is not None:
            by_weight = by_weight * factors
        by_score = self._weights_pullback(panel, second, by_weight)
        position = getattr(self.config, "position", None)
        if isinstance(position, T5Bias):
            add_table(call, panel, by_score, t5_buckets(all_distances(call), position))
        if call.bias is not None:
            _add_bias(call, panel, by_score)
        by_score = by_score * slope
        if panel.visible is not None:
            by_score = np.where(panel.visible, by_score, 0)
        self._scores_pullback(panel, tape, by_score)

    # ---- all panels -----------------------------------------------------------------------------

    def _run(self, call: Call, work: Callable[[Panel, int], None]) -> int:
        """Call `work(panel, unit)` for all panels; returns the number of units of work."""
        units = self._units(call)

        def run(unit: int) -> None:
            # What is hidden may hold anything; a warning about it would mislead.
            with np.errstate(invalid="ignore", over="ignore"):
                for panel in self._panels(call, units[unit]):
                    work(panel, unit)

        shared(run, len(units), len(units))
        return len(units)

    def _units(self, call: Call) -> list[Sequence[tuple[int, int]]]:
        batch, heads, queries = call.query.shape[:3]
        rows = self._rows(call)
        places = [(b, first) for b in range(batch) for first in range(0, queries, rows)]
        from polyattn_core.simd import threads

        wanted = min(self.config.threads or threads.limit(), threads.limit(), len(places))
        if batch * heads * queries * call.shape.keys < _PANEL // 8:
            wanted = 1  # another thread would cost more than it saves
        cuts = [len(places) * i // wanted for i in range(wanted + 1)]
        return [places[a:b] for a, b in itertools.pairwise(cuts)]

    def _rows(self, call: Call) -> int:
        scores = call.query.shape[1] * call.shape.keys  # of one query
        return int(max(1, min(call.query.shape[2], _PANEL // scores)))

    def _panels(self, call: Call, places: Sequence[tuple[int, int]]) -> Iterator[Panel]:
        rows = self._rows(call)
        see = None if call.mask is None else VisibleRows(call.mask, call.shape)
        # Products of arrays that lie otherwise are the same but for rounding; so they are the same.
        query, key, value = map(np.ascontiguousarray, (call.query, call.key, call.value))
        for batch, first in places:
            part = slice(first, min(first + rows, call.query.shape[2]))
            yield Panel(
                batch, part, query[batch, :, part], key[batch], value[batch],
                None if see is None else see(batch, first, part.stop - first),
            )  # fmt: skip

    def _forward(self, call: Call) -> Array:
        output = _output(call)

        def work(panel: Panel, unit: int) -> None:
            output[panel.batch, :, panel.rows] = self._attended(call, panel)[0]

        self._run(call, work)
        return output

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        batch, heads, queries = call.query.shape[:3]
        keys, dtype = call.shape.keys, call.dtype
        output, units = _output(call), len(self._units(call))
        shapes = {
            "weights": (batch, heads, queries, keys),
            "entropy": (batch, heads, queries),
            "column_mass": (units, batch, heads, keys),
        }
        found = {name: np.zeros(shapes[name], dtype) for name in wanted}

        def work(panel: Panel, unit: int) -> None:
            output[panel.batch, :, panel.rows], weights, _ = self._attended(call, panel)
            if "weights" in found:
                found["weights"][panel.batch, :, panel.rows] = weights
            if "entropy" in found:
                logarithm = np.log(np.where(weights > 0, weights, 1))
                entropy = -np.einsum("hqk,hqk->hq", weights, logarithm)
                found["entropy"][panel.batch, :, panel.rows] = entropy
            if "column_mass" in found:
                found["column_mass"][unit, panel.batch] += weights.sum(axis=1)

        self._run(call, work)
        if "column_mass" in found:
            found["column_mass"] = found["column_mass"].sum(axis=0)
        return output, found

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        def pullback(gradient: Array) -> Gradients:
            arrays = {"query": call.query, "key": call.key, "value": call.value}
            learned = {
                name: np.zeros(array.shape, call.dtype) for name, array in self.parameters.items()
            }
            bias = {} if call.bias is None else {"bias": call.bias}
            # Queries belong to one panel; everything else is added up, by each unit for itself.
            d_query = np.zeros(call.query.shape, call.dtype)
            sums = [
                {
                    n: np.zeros_like(a)
                    for n, a in {**arrays, **learned, **bias}.items()
                    if n != "query"
                }
                for _ in self._units(call)
            ]

            def work(panel: Panel, unit: int) -> None:
                panel.sums = {**sums[unit], "query": d_query[panel.batch, :, panel.rows]}
                self._pulled_back(call, panel, gradient[panel.batch, :, panel.rows])

            self._run(call, work)
            total = {name: functools.reduce(np.add, [s[name] for s in sums]) for name in sums[0]}
            return Gradients(
                d_query, total["key"], total["value"], total.get("bias"),
                {name: total[name] for name in learned},
            )  # fmt: skip

        return PanelMechanism._forward(self, call), pullback


def _output(call: Call) -> Array:
    batch, heads, queries = call.query.shape[:3]
    # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
    shape = (batch, queries, heads, call.value.shape[3])
    return np.empty(shape, call.dtype).transpose(0, 2, 1, 3)


def by_group(array: Array, key_heads: int) -> Array:
    """(heads, rows, n) as (key heads, heads of a group · rows, n)."""
    return array.reshape(key_heads, -1, array.shape[-1])


def product(weights: Array, vectors: Array, visible: Array | None) -> Array:
    """weights · vectors, (heads, rows, size), where 0 · NaN behind a mask is 0."""
    heads, rows, _ = weights.shape
    bad = np.zeros(0, int)
    if visible is not None:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=(0, 2)))
    finite = vectors
    if len(bad):
        finite = vectors.copy()
        finite[:, bad] = 0
    out = by_group(weights, len(vectors)) @ finite
    out = out.reshape(heads, rows, -1)
    for key in bad:
        assert visible is not None
        seen = visible[:, :, key, None]
        if seen.any():
            vector = np.repeat(vectors[:, key], heads // len(vectors), axis=0)[:, None]
            out = np.where(seen, out + weights[:, :, key, None] * vector, out)
    return np.asarray(out)


def softmax(scores: Array) -> Array:
    """Along keys; 0 where nothing is visible. Scores may be written over."""
    from .kernels.softmax import softmax_kernels

    scores = np.ascontiguousarray(scores)
    softmax_kernels(scores.dtype.name)[0](scores)
    return scores


def softmax_pullback(weights: Array, gradient: Array) -> Array:
    """The gradient by scores."""
    from .kernels.softmax import softmax_kernels

    by_score = np.empty_like(weights)
    softmax_kernels(weights.dtype.name)[1](weights, np.ascontiguousarray(gradient), by_score)
    return by_score


def scaled_products(panel: Panel, scale: float) -> Array:
    """scale · q·kᵀ."""
    query = by_group(panel.query * panel.query.dtype.type(scale), len(panel.key))
    scores = query @ panel.key.swapaxes(1, 2)
    return np.asarray(scores.reshape(len(panel.query), -1, panel.key.shape[1]))


def scaled_products_pullback(panel: Panel, scale: float, gradient: Array) -> None:
    """Add to the sums by query and key."""
    factor = gradient.dtype.type(scale)
    panel.sums["query"] += factor * product(gradient, panel.key, panel.visible)
    of_queries = by_group(gradient, len(panel.key)).swapaxes(1, 2)
    panel.sums["key"][panel.batch] += factor * (of_queries @ by_group(panel.query, len(panel.key)))


def _panel_of(call: Call, bias: Array, panel: Panel) -> Array:
    """The part of a bias, or a view of its gradient, that belongs to a panel; not broadcast."""
    full = bias.reshape((1,) * max(0, len(call.shape.lead) + 3 - bias.ndim) + bias.shape)
    lead = np.unravel_index(panel.batch, call.shape.lead) if call.shape.lead else ()
    index = tuple(int(i) if n > 1 else 0 for i, n in zip(lead, full.shape, strict=False))
    part = full[index]
    return np.asarray(part[:, panel.rows] if part.shape[1] > 1 else part)


def _add_bias(call: Call, panel: Panel, gradient: Array) -> None:
    view = _panel_of(call, panel.sums["bias"], panel)
    view += unbroadcast(gradient, view.shape)
