"""A mechanism in plain NumPy with every capability: what a plugin has to do, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from polyattn_core.arrays import unbroadcast
from polyattn_core.config import AttentionConfig
from polyattn_core.mechanism import Call, Gradients, Mechanism
from polyattn_core.partial import PartialState
from polyattn_core.spec import Capabilities, MechanismSpec, SideInput

STATISTICS = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")


class PlainConfig(AttentionConfig):
    """Options of `plain`."""

    causal: bool = False
    """Hide later keys."""
    scale: float = Field(default=0.5, gt=0)
    """Factor of the scores."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""


def reference(query, key, value, mask=None, bias=None, *, config, parameters):
    """softmax(gain · scale · q·kᵀ) v."""
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    gain = parameters["gain"][:, None, None] if "gain" in parameters else 1.0
    scores = gain * config.scale * (query @ key.swapaxes(-1, -2))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return grown / np.where(total == 0, 1, total) @ value


class Plain(Mechanism):
    """Soft-max attention (arXiv:1706.03762) with a learned gain for each head, or without."""

    learns = True

    def _initial_parameters(self, rng):
        return {"gain": rng.normal(1, 0.1, self.config.heads)} if self.learns else {}

    # ---- scores and weights -----------------------------------------------------------------

    def _gain(self, call: Call) -> Any:
        if not self.learns:
            return call.dtype.type(self.config.scale)
        gain = self.parameters["gain"].astype(call.dtype)
        return (gain * call.dtype.type(self.config.scale))[:, None, None]

    def _repeated(self, array: Any, call: Call) -> Any:
        return np.repeat(array, call.query.shape[1] // array.shape[1], axis=1)

    def _products(self, call: Call) -> Any:
        # What is behind a mask may be infinite, and is taken out by the mask.
        with np.errstate(invalid="ignore"):
            return call.query @ self._repeated(call.key, call).swapaxes(-1, -2)

    def _scores(self, call: Call) -> Any:
        scores = self._gain(call) * self._products(call)
        if call.bias is not None:
            full = (*call.shape.lead, *scores.shape[1:])
            scores = scores + np.broadcast_to(call.bias, full).reshape(scores.shape)
        if call.mask is not None:
            stop = call.key_start + call.key.shape[2]
            seen = call.mask.dense(call.shape)[..., call.key_start : stop]
            scores = np.where(seen, scores, -np.inf).astype(call.dtype)
        return scores

    def _log_sum_exp(self, scores: Any) -> Any:
        most = scores.max(axis=-1)
        most = np.where(np.isneginf(most), 0, most)
        with np.errstate(divide="ignore"):
            return most + np.log(np.exp(scores - most[..., None]).sum(axis=-1))

    def _weights(self, call: Call) -> tuple[Any, Any]:
        scores = self._scores(call)
        total = self._log_sum_exp(scores)
        base = np.where(np.isneginf(total), 0, total)
        return np.exp(scores - base[..., None]), total

    def _kept(self, call: Call, weights: Any) -> Any:
        """Factors of dropout."""
        if call.seed is None:
            return np.ones_like(weights)
        rate = self.config.dropout
        draws = np.random.default_rng(call.seed).random(weights.shape)
        return (draws >= rate).astype(weights.dtype) / weights.dtype.type(1 - rate)

    def _sum(self, weights: Any, value: Any) -> Any:
        """weights · value, where a weight of 0 hides even what is not finite."""
        if np.isfinite(value).all():
            return weights @ value
        with np.errstate(invalid="ignore"):
            terms = weights[..., None] * value[:, :, None]
        return np.where(weights[..., None] == 0, 0, terms).sum(axis=-2)

    # ---- the protocol ---------------------------------------------------------------------------

    def _forward(self, call):
        weights, _ = self._weights(call)
        return self._sum(weights * self._kept(call, weights), self._repeated(call.value, call))

    def _vjp(self, call):
        weights, _ = self._weights(call)
        kept = self._kept(call, weights)
        value = self._repeated(call.value, call)
        output = self._sum(weights * kept, value)

        def pullback(gradient):
            by_value = (weights * kept).swapaxes(-1, -2) @ gradient
            with np.errstate(invalid="ignore"):
                by_weight = np.where(weights == 0, 0, kept * (gradient @ value.swapaxes(-1, -2)))
            inner = (weights * by_weight).sum(axis=-1, keepdims=True)
            by_score = weights * (by_weight - inner)
            products = np.where(weights == 0, 0, self._products(call))
            by_product = self._gain(call) * by_score
            key = np.where(np.isfinite(call.key), call.key, 0)
            by_query = by_product @ self._repeated(key, call)
            by_key = by_product.swapaxes(-1, -2) @ call.query
            parameters = {}
            if self.learns:
                by_gain = (by_score * products).sum(axis=(0, 2, 3))
                parameters["gain"] = by_gain * self.config.scale
            bias = None
            if call.bias is not None:
                full = by_score.reshape((*call.shape.lead, *by_score.shape[1:]))
                bias = unbroadcast(full, call.bias.shape)
            return Gradients(
                by_query, self._shared(by_key, call), self._shared(by_value, call), bias, parameters
            )

        return output, pullback

    def _shared(self, gradient: Any, call: Call) -> Any:
        """Sums over the query heads that share a key head."""
        batch, heads, keys, size = gradient.shape
        own = call.key.shape[1]
        return gradient.reshape(batch, own, heads // own, keys, size).sum(axis=2)

    def _observe(self, call, wanted):
        weights, total = self._weights(call)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(weights > 0, -weights * np.log(weights), 0)
        found = {
            "weights": weights,
            "log_sum_exp": total,
            "entropy": terms.sum(axis=-1),
            "column_mass": weights.sum(axis=-2),
        }
        output = self._sum(weights, self._repeated(call.value, call))
        found = {name: array for name, array in found.items() if name in wanted}
        if "top_weights" in wanted:
            padded = np.pad(weights, ((0, 0), (0, 0), (0, 0), (0, call.top)))
            keys = np.argsort(-padded, axis=-1, kind="stable")[..., : call.top]
            found["top_weights"] = np.take_along_axis(padded, keys, axis=-1)
            found["top_keys"] = np.where(found["top_weights"] > 0, keys, -1)
        return output, found

    def _partial(self, call):
        weights, total = self._weights(call)
        return PartialState(self._sum(weights, self._repeated(call.value, call)), total)


class PlainUnlearned(Plain):
    """Without parameters, so that heads are alike. (arXiv:1706.03762)"""

    learns = False


def gated_reference(query, key, value, mask=None, bias=None, *, config, parameters, gate):
    """gate · softmax(gain · scale · q·kᵀ) v."""
    output = reference(query, key, value, mask, bias, config=config, parameters=parameters)
    return gate.reshape(output.shape[:-1])[..., None] * output


class PlainGated(Plain):
    """With a side input, a factor for each query, and its gradient. (arXiv:1706.03762)"""

    def _gate(self, call: Call) -> Any:
        return call.side["gate"].reshape(call.query.shape[:3])[..., None].astype(call.dtype)

    def _forward(self, call):
        return self._gate(call) * super()._forward(call)

    def _vjp(self, call):
        output, pull = super()._vjp(call)
        gate = self._gate(call)

        def pullback(gradient):
            found = pull(gate * gradient)
            by_gate = (gradient * output).sum(axis=-1)
            found.side["gate"] = by_gate.reshape(call.side["gate"].shape)
            return found

        return gate * output, pullback

    def _partial(self, call):
        state = super()._partial(call)
        return PartialState(self._gate(call) * state.output, state.log_sum_exp)


def gates(rng, lead, heads, queries, keys, dim) -> dict[str, Any]:
    """Side inputs for `PlainGated`."""
    return {"gate": rng.random((*lead, heads, queries))}


GATE = SideInput(name="gate", shape="(..., heads, queries)", description="a factor")


def spec(name: str, factory: str, **changes: Any) -> MechanismSpec:
    """The spec of a mechanism like `plain`, with some of its entries changed."""
    capabilities = {
        "partial": True, "dropout": True, "statistics": STATISTICS, "parametric": True,
        **changes.pop("capabilities", {}),
    }  # fmt: skip
    entries = {
        "name": name,
        "family": "acme",
        "summary": "Soft-max attention in plain NumPy",
        "formula": "softmax(g q·kᵀ) v",
        "factory": factory,
        "config": "acme_plain:PlainConfig",
        "reference": "acme_plain:reference",
        "papers": ("1706.03762",),
        "sharpness": "scale",
        **changes,
    }
    return MechanismSpec(capabilities=Capabilities(**capabilities), **entries)


GOOD = (
    spec("plain", "acme_plain:Plain"),
    spec("unlearned", "acme_plain:PlainUnlearned", capabilities={"parametric": False}),
    spec(
        "gated",
        "acme_plain:PlainGated",
        reference="acme_plain:gated_reference",
        capabilities={"side_inputs": (GATE,), "statistics": ()},
    ),
)
