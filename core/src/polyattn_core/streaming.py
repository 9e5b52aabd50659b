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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import streaming_requests as requests
from .arrays import Array
from .cached import CachedCall, widened
from .config import AttentionConfig
from .errors import ConfigError
from .masks import Mask
from .mechanism import Call, Gradients, Mechanism, Pullback
from .partial import PartialState
from .positions import Alibi, T5Bias, alibi_slopes
from .repeated_calls import RepeatedCalls
from .score_option import UserRule
from .spec import MechanismSpec
from .streaming_config import ScaledConfig, StreamingConfig
from .streaming_requests import bias_view

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

    def _attend_again(self, query: Any, key: Any, value: Any) -> Array | None:
        plans = self._plans
        return None if plans is None else plans.attend(self, query, key, value)

    def _plan(self, query: Array, key: Array, value: Array) -> Plan | None:
        """The plan of a call; None unless the kernel reads the very arrays that are passed."""
        call = self._prepare(query, key, value, None, None, False, None, {})[0]
        if call.query is not query or call.key is not key or call.value is not value:
            return None
        from .simd import engine

        return engine.plan(self._request(call)[0])

    @functools.cached_property
    def _plans(self) -> RepeatedCalls | None:
        return RepeatedCalls() if self._repeats() else None

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
                parameters["position.table"] = requests.table_gradient(call, position, bias)
                bias = None
            return Gradients(d_query, d_key, found.value, bias, parameters)

        return state.out, pullback

    def _request(self, call: Call) -> tuple[Request, Any]:
        """The engine's request, and a pullback of what was done to queries and keys before."""
        return requests.build(self, call)

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
        return requests.turned(call, self.config.position, query, key, undo)

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
_RULES = (
    "_rules", "_components", "_transform", "_weight_rule", "_all_rules", "_request", "_forward",
)  # fmt: skip


__all__ = [
    "STREAMING_STATISTICS",
    "WEIGHT_STATISTICS",
    "ScaledConfig",
    "StreamingConfig",
    "StreamingMechanism",
    "bias_view",
]
