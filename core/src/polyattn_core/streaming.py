"""The base class for mechanisms that run on the streaming tile engine.

A mechanism on the engine says what its score rules, normaliser and mask are; masks, biases,
positions, grouped heads, dropout, gradients, statistics and partial results come with the engine.

>>> class Gaussian(StreamingMechanism):                              # doctest: +SKIP
...     def _rules(self, call):
...         return [(negative_squared_distance, (0.5 / self.config.bandwidth**2,))]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from .arrays import Array
from .cached import CachedCall, widened
from .config import AttentionConfig
from .diagnostics import AttentionComputed, bus
from .errors import ArgumentError, ConfigError, PolyattnError
from .masks import Mask
from .mechanism import Call, Gradients, Mechanism, Pullback
from .partial import PartialState
from .positions import Alibi, Position, Rope, T5Bias, alibi_slopes, distances, rotate, t5_buckets
from .score_option import Score, ScoreParameters, ScoreValues, UserRule
from .spec import MechanismSpec

if TYPE_CHECKING:
    from .simd.engine import Component, Plan, Request
    from .simd.rules import ScoreRule

STREAMING_STATISTICS = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")
"""Statistics of a soft-max on the engine."""
WEIGHT_STATISTICS = ("weights", "entropy", "column_mass", "top_weights")
"""Statistics of the other normalisers."""
_BY_TILE = ("softmax", "softpick")
"""Normalisers that see one tile of keys after another, in the same order in every call."""
_POSITIONAL_KINDS = frozenset(("causal", "window", "dilated", "strided", "global", "prefix"))


class StreamingConfig(AttentionConfig):
    """Options that every mechanism on the streaming engine has."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""
    softcap: float | None = Field(default=None, gt=0)
    """Cap scores softly: softcap · tanh(score / softcap)."""
    reproducible: bool = False
    """The same bits whatever the batch, the threads, and how queries are divided into calls."""
    position: Position | None = None
    """Position axis: "rope", "alibi", "t5", or one of these with options as a mapping."""
    score: Score = None
    """A score rule of your own, applied to the mechanism's scores; in JSON "module:name"."""
    score_params: ScoreValues = Field(default_factory=ScoreParameters)
    """The rule's parameters by name: numbers, one number a head, or arrays that it indexes."""

    @field_validator("position", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_score(self) -> Self:
        if self.score is None and self.score_params:
            raise ValueError("score_params: there is no score= whose parameters they could be")
        return self


class ScaledConfig(StreamingConfig):
    """Adds the scale of a dot-product score."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""


class StreamingMechanism(Mechanism):
    """A mechanism whose scores stream through tiles. See the module's description."""

    normaliser: ClassVar[str] = "softmax"
    by_row: ClassVar[bool | None] = None
    """Is a row of the output a function of its query and the keys that it sees, and of no others,
    to the last bit? None for yes, unless the mechanism maps queries and keys or has its own forward
    pass: then it has to say so."""
    config: Any

    def __init__(self, config: AttentionConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        self._user_rule: UserRule | None = None
        rule = getattr(self.config, "score", None)
        if rule is not None:
            self._user_rule = UserRule(rule, self.config.score_params, config.heads)
            moved = type(self)._transform is not StreamingMechanism._transform
            if moved and (rule.row or rule.column):
                raise ConfigError(
                    "score", rule, f"a rule without row and column: {self.name} transforms queries "
                    "and keys, and their statistics would be those of what it makes of them",
                )  # fmt: skip

    @property
    def _reproducible(self) -> bool:
        return bool(getattr(self.config, "reproducible", False))

    def _by_row(self) -> bool:
        if self.normaliser not in _BY_TILE:
            return False
        if self.by_row is not None:
            return self.by_row
        names = ("_forward", "_transform", "_request")
        return all(getattr(type(self), n) is getattr(StreamingMechanism, n) for n in names)

    # ---- what a mechanism says about its rule -------------------------------------------------

    def _scale(self, call: Call) -> float:
        """Factor of the raw products."""
        scale = getattr(self.config, "scale", None)
        return float(scale) if scale is not None else 1 / math.sqrt(call.query.shape[-1])

    def _rules(self, call: Call) -> Sequence[tuple[ScoreRule, Sequence[Any]]]:
        """Score rules with their parameters, applied in order to the scaled product."""
        return ()

    def _components(self, call: Call) -> Sequence[Component] | None:
        """Where the score is a sum over slices of the head: the slices, in order.

        Each has a size, a scale of its own (:meth:`_scale` then says nothing) and rules of its own;
        those of :meth:`_rules` follow on the sum.
        """
        return None

    def _weight_rule(self, call: Call) -> tuple[ScoreRule, Sequence[Any]] | None:
        """For the element-wise normaliser: the rule from score to weight."""
        return None

    def _sink(self) -> Array | None:
        """Score of a sink for each head."""
        return None

    def _top(self, call: Call) -> int:
        """For the top-k normaliser: k."""
        return 0

    def _epsilon(self) -> float:
        """For soft-pick: ε of its denominator."""
        return 0.0

    def _block(self) -> int:
        """Keys of a tile."""
        return 64

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        """Map queries and keys before the product; the third is a pullback (dq, dk) → (dq, dk)."""
        return query, key, None

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        """Gradients by learned arrays, from those by rule parameters (heads, all) and the sink."""
        return {}

    # ---- the engine -----------------------------------------------------------------------------

    def _repeats(self) -> bool:
        """Does a call without mask and bias depend on its shapes and the configuration alone?

        What was worked out for it then serves the next call of the same shapes. False where a
        subclass has a say in more than the mask and the size of tiles.
        """
        position = self.config.position
        if position is not None and not isinstance(position, Alibi):
            return False
        if self._user_rule is not None:  # whose parameters are learned
            return False
        kind = type(self)
        return all(getattr(kind, n) is getattr(StreamingMechanism, n) for n in _DECISIONS)

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        position = self.config.position
        arrays = self._user_rule.initial() if self._user_rule else {}
        if isinstance(position, T5Bias):
            shape = (self.config.heads, position.buckets)
            arrays["position.table"] = rng.normal(0, 0.02, shape).astype(np.float32)
        return arrays

    def attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        mask: Any = None,
        bias: Any = None,
        training: bool = False,
        rng: Any = None,
        **side: Any,
    ) -> Array:
        if mask is None and bias is None and training is False and not side:
            output = self._attend_again(query, key, value)
            if output is not None:
                return output
        return super().attend(
            query, key, value, mask=mask, bias=bias, training=training, rng=rng, **side
        )

    attend.__doc__ = Mechanism.attend.__doc__

    def _attend_again(self, query: Any, key: Any, value: Any) -> Array | None:
        """Attend by the plan of an earlier call of these shapes; None where there can be none."""
        plans = self._plans
        if plans is None or not type(query) is type(key) is type(value) is np.ndarray:
            return None
        if query.ndim == 3:
            found = self._attend_again(query[None], key[None], value[None])
            return None if found is None else found[0]
        if bus.wanted(AttentionComputed):
            return None
        layout = (
            query.shape, key.shape, value.shape, query.strides, key.strides, value.strides,
            query.dtype, key.dtype, value.dtype,
        )  # fmt: skip
        plan = plans.get(layout)
        if plan is None:
            if layout in plans:
                return None
            try:
                call = self._prepare(query, key, value, None, None, False, None, {})[0]
            except PolyattnError:
                return None  # said where the arguments are as they were passed
            # Only where the kernel reads the very arrays that were passed.
            if call.query is query and call.key is key and call.value is value:
                from .simd import engine

                plan = engine.plan(self._request(call)[0])
            if len(plans) >= _PLANS:
                plans.clear()
            plans[layout] = plan
        if plan is None or not query.flags.aligned & key.flags.aligned & value.flags.aligned:
            return None
        output: Array = plan(query, key, value)
        return output

    @functools.cached_property
    def _plans(self) -> dict[Any, Plan | None] | None:
        return {} if self._repeats() else None

    @property
    def _narrow(self) -> bool:
        found = self.__dict__.get("_halves")
        if found is None:
            found = self.__dict__["_halves"] = self._takes_halves()
        return bool(found)

    def _takes_halves(self) -> bool:
        """Is the rule that of the kernel for bfloat16, and has the processor its instruction?"""
        kind, config = type(self), self.config
        plain = all(getattr(kind, n) is getattr(StreamingMechanism, n) for n in _RULES)
        if self.normaliser != "softmax" or not plain or config.position or config.softcap:
            return False
        from .simd import halves

        return not self._reproducible and halves.supported()

    def _forward(self, call: Call) -> Array:
        from .simd import engine

        if call.dtype.name == "bfloat16":
            found = self._forward_narrow(call)
            if found is not None:
                return found
            call = call.widened()
        request, _ = self._request(call)
        return engine.forward(request).out

    def _forward_narrow(self, call: Call) -> Array | None:
        """Attention in bfloat16; None where the kernel is not made for the call."""
        from .simd import halves, masking

        if call.query.shape[-1] % 2 or call.seed is not None:
            return None
        if not halves.pays(call.query, call.key):
            return None
        mask = masking.NO_MASK
        if call.mask is not None:
            mask = self._encoded(call.mask, call, masking)
        query, key, value = (x.view(np.uint16) for x in (call.query, call.key, call.value))
        out = halves.forward(
            query, key, value, self._scale(call), mask, self._sink(), self.config.threads
        )
        return out.view(call.dtype)

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        from .simd import engine

        request, _ = self._request(call)
        request.entropy = "entropy" in wanted
        request.recomputes = not wanted <= {"log_sum_exp", "entropy"}
        state = engine.forward(request)
        found = engine.gather(request, state, wanted - {"log_sum_exp"}, call.top)
        if "log_sum_exp" in wanted:
            found["log_sum_exp"] = state.first
        return state.out, found

    def _partial(self, call: Call) -> PartialState:
        from .simd import engine

        request, _ = self._request(call)
        sink, request.sink = request.sink, None
        state = engine.forward(request)
        return PartialState(state.out, state.first, sink)

    def _cached(self, call: CachedCall) -> PartialState:
        from .stored import attend_stored

        if self._reproducible:
            return widened(self, call, whole=True)
        return attend_stored(self, call) or widened(self, call, whole=False)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        from .simd import engine

        request, undo = self._request(call)
        for rule, values in request.all_rules():
            obstacle = rule.obstacle(rule.kinds(values))
            if obstacle:
                raise self._lacks(
                    f"gradients with the score rule {rule.name}, which has no derivative: one "
                    f"cannot be derived ({obstacle}), so give it with @{rule.name}.derivative"
                )
            if self._user_rule is not None and rule is self._user_rule.rule:
                self._user_rule.check(values, call, self._scale(call))
        request.recomputes = True
        state = engine.forward(request)

        def pullback(gradient: Array) -> Gradients:
            found = engine.backward(request, state, gradient)
            d_query, d_key = found.query, found.key
            if undo is not None:
                d_query, d_key = undo(d_query, d_key)
            parameters = self._parameter_gradients(found.parameters, found.sink)
            user = self._user_rule
            if user is not None and request.encoded is not None:
                place = next(
                    n for n, (rule, _) in enumerate(request.all_rules()) if rule is user.rule
                )
                slots = request.encoded.slots[place]
                parameters |= user.gradients(found.parameters, found.arrays, slots)
            bias = found.bias
            position = self.config.position
            if isinstance(position, T5Bias) and bias is not None:
                parameters["position.table"] = self._table_gradient(call, position, bias)
                bias = None
            return Gradients(d_query, d_key, found.value, bias, parameters)

        return state.out, pullback

    def _request(self, call: Call) -> tuple[Request, Any]:
        """The engine's request, and a pullback of what was done to queries and keys before."""
        from .simd import masking
        from .simd.engine import NORMALISERS, Request

        config = self.config
        query, key, undo = self._transform(call.query, call.key)
        if isinstance(config.position, Rope):
            query, key, undo = self._rotate(call, query, key, undo)
        request = Request(
            query, key, call.value, self._scale(call), NORMALISERS[self.normaliser],
            self._all_rules(call), threads=config.threads,
        )  # fmt: skip
        request.components = self._components(call) or ()
        shape = call.shape
        if call.mask is not None:
            request.mask = self._encoded(call.mask, call, masking)
        request.mask_queries, request.mask_keys = shape.queries, shape.keys
        request.key_start = call.key_start
        request.sink = self._sink()
        request.top = self._top(call)
        request.epsilon = self._epsilon()
        request.block = self._block()
        request.reproducible = self._reproducible
        if call.seed is not None:
            request.seed, request.keep = call.seed, 1 - config.dropout
        if isinstance(config.position, T5Bias):
            if call.bias is not None:
                raise ArgumentError(
                    "bias", "an array besides position='t5'", "one of both: add them up yourself"
                )
            table = self.parameters["position.table"].astype(call.dtype)
            buckets = t5_buckets(distances(shape.queries, shape.keys), config.position)
            request.relative = np.ascontiguousarray(table[:, buckets])
        elif call.bias is not None:
            request.bias, request.bias_batch = bias_view(call)
        return request, undo

    def _all_rules(self, call: Call) -> list[tuple[ScoreRule, Sequence[Any]]]:
        config = self.config
        rules = list(self._rules(call))
        if self._user_rule is not None:
            rules.append(self._user_rule.link(self.parameters, call.dtype))
        if isinstance(config.position, Alibi):
            from .simd.builtin_rules import alibi

            start = call.shape.keys - call.shape.queries
            rules.append((alibi, (alibi_slopes(call.query.shape[1]), start)))
        if config.softcap is not None:
            from .simd.builtin_rules import softcap

            rules.append((softcap, (config.softcap,)))
        weight = self._weight_rule(call)
        return rules if weight is None else [*rules, weight]

    def _rotate(self, call: Call, query: Array, key: Array, undo: Any) -> tuple[Array, Array, Any]:
        rope = self.config.position
        if call.query_rotation is not None:
            return rotate(query, call.query_rotation, rope), key, undo
        own = np.arange(call.shape.queries) + call.shape.keys - call.shape.queries
        theirs = np.arange(key.shape[-2]) + call.key_start

        def back(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            d_query = rotate(d_query, own, rope, inverse=True)
            d_key = rotate(d_key, theirs, rope, inverse=True)
            return (d_query, d_key) if undo is None else undo(d_query, d_key)

        return rotate(query, own, rope), rotate(key, theirs, rope), back

    def _encoded(self, mask: Mask, call: Call, masking: Any) -> Any:
        """The encoded mask; kept for masks of positions alone, which come again and again."""
        if not mask.kinds <= _POSITIONAL_KINDS:
            return masking.encode(mask.program(call.shape))
        cache: dict[Any, Any] = self.__dict__.setdefault("_encoded_masks", {})
        key = (mask, call.shape)
        found = cache.get(key)
        if found is None:
            if len(cache) >= 64:
                cache.clear()
            found = cache[key] = masking.encode(mask.program(call.shape))
        return found

    def _table_gradient(self, call: Call, position: T5Bias, by_distance: Array) -> Array:
        buckets = t5_buckets(distances(call.shape.queries, call.shape.keys), position)
        gradient = np.zeros((position.buckets, by_distance.shape[0]), by_distance.dtype)
        np.add.at(gradient, buckets, by_distance.T)
        return np.ascontiguousarray(gradient.T)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("_encoded_masks", None)
        state.pop("_plans", None)
        state.pop("_halves", None)  # of this processor
        return state


_DECISIONS = (
    "_scale", "_rules", "_components", "_weight_rule", "_sink", "_top", "_epsilon", "_transform",
    "_forward", "_request", "_all_rules", "_prepare", "combined_mask", "normaliser",
)  # fmt: skip
_PLANS = 64  # kept by a mechanism
_RULES = (
    "_rules", "_components", "_transform", "_weight_rule", "_all_rules", "_request", "_forward",
)  # fmt: skip


def bias_view(call: Call) -> tuple[Array, Array]:
    """The bias as (bias batches, heads, queries, keys) with strides 0 where it is broadcast."""
    bias, shape = call.bias, call.shape
    assert bias is not None
    bias = bias.reshape((1,) * max(0, 3 - bias.ndim) + bias.shape)
    own = bias.shape[:-3]
    flat = bias.reshape((math.prod(own), *bias.shape[-3:]))
    batches = np.broadcast_to(np.arange(len(flat)).reshape(own), shape.lead).reshape(-1)
    full = (len(flat), shape.heads, shape.queries, shape.keys)
    return np.broadcast_to(flat, full), np.ascontiguousarray(batches, np.int64)


__all__ = [
    "STREAMING_STATISTICS",
    "WEIGHT_STATISTICS",
    "ScaledConfig",
    "StreamingConfig",
    "StreamingMechanism",
    "bias_view",
]
