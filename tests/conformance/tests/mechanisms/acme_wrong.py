"""Mechanisms that compute something wrong: each is `plain` but for one error."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from acme_plain import Plain, PlainGated, PlainUnlearned

from polyattn_core.errors import PolyattnError
from polyattn_core.masks import Not


class SlightlyOff(Plain):
    def _forward(self, call):
        return super()._forward(call) + call.dtype.type(1e-3)


class ExampleFails(Plain):
    """An example that prints something else.

    >>> 1 + 1
    3
    """


class FarOff(Plain):
    def _forward(self, call):
        return super()._forward(call) + call.dtype.type(0.1)


class ComputesInSingle(Plain):
    def _forward(self, call):
        return super()._forward(call).astype(np.float32).astype(call.dtype)


class IgnoresScale(Plain):
    def _gain(self, call):
        return super()._gain(call) * 0.5 / self.config.scale


class FirstKeysForAll(Plain):
    def _forward(self, call):
        return super()._forward(replace(call, key=np.broadcast_to(call.key[:1], call.key.shape)))


class HeadsInTurn(Plain):
    def _repeated(self, array, call):
        return np.tile(array, (1, call.query.shape[1] // array.shape[1], 1, 1))


class IgnoresBias(Plain):
    def _forward(self, call):
        return super()._forward(replace(call, bias=None))


class IgnoresOwnMask(Plain):
    def _own_mask(self, shape):
        return None


class IgnoresMask(Plain):
    def combined_mask(self, mask, shape):
        return super().combined_mask(None, shape)


class LosesNegation(Plain):
    def combined_mask(self, mask, shape):
        return super().combined_mask(mask.operand if isinstance(mask, Not) else mask, shape)


class InvertsArrays(Plain):
    def combined_mask(self, mask, shape):
        return super().combined_mask(~mask if isinstance(mask, np.ndarray) else mask, shape)


class MergesInReverse(Plain):
    def __call__(self, query, key=None, value=None, **options):
        return super().__call__(query, key, value, **options)[..., ::-1]


class KeepsAxisOfSingleQuery(Plain):
    def __call__(self, query, key=None, value=None, **options):
        output = super().__call__(query, key, value, **options)
        return output[None] if np.ndim(query) == 1 else output


class NoMaximum(Plain):
    def _log_sum_exp(self, scores):
        return np.log(np.exp(scores).sum(axis=-1))


class WarnsOfOverflow(Plain):
    def _weights(self, call):
        with np.errstate(over="warn"):
            np.square(call.query)
        return super()._weights(call)


class UniformWhereNothingIsSeen(Plain):
    def _weights(self, call):
        weights, total = super()._weights(call)
        empty = np.isneginf(total)[..., None]
        return np.where(empty, 1 / weights.shape[-1], weights).astype(call.dtype), total


class MultipliesByZero(Plain):
    def _sum(self, weights, value):
        with np.errstate(invalid="ignore"):
            return weights @ value


class GradientMultipliesByZero(Plain):
    def _vjp(self, call):
        output, pull = super()._vjp(call)

        def pullback(gradient):
            found = pull(gradient)
            with np.errstate(invalid="ignore"):
                found.query = found.query + 0 * call.key.sum()
            return found

        return output, pullback


class LooksAcrossBatch(Plain):
    def _forward(self, call):
        return super()._forward(call) + 1e-3 * call.key.mean(dtype=call.dtype)


class HeadsDiffer(PlainUnlearned):
    def _gain(self, call):
        return super()._gain(call) * np.arange(1, 1 + self.config.heads)[:, None, None]


class LooksAtPositions(Plain):
    def _scores(self, call):
        return super()._scores(call) + 0.01 * np.arange(call.key.shape[2])


class Noisy(Plain):
    def _forward(self, call):
        output = super()._forward(call)
        return output + 1e-13 * np.random.default_rng().standard_normal(output.shape)


class ThreadsMatter(Plain):
    def _forward(self, call):
        return super()._forward(call) + 1e-3 * (self.config.threads or 0)


class WritesToItsInputs(Plain):
    def _forward(self, call):
        output = super()._forward(call)
        call.query[...] *= 2
        return output


class AssumesContiguous(Plain):
    def _forward(self, call):
        query = call.query.ravel(order="K").reshape(call.query.shape)
        return super()._forward(replace(call, query=query))


class KeepsCallOnInstance(Plain):
    def _forward(self, call):
        self.call = call
        time.sleep(0.02)
        return super()._forward(self.call)


class KeyGradientTooLarge(Plain):
    def _vjp(self, call):
        output, pull = super()._vjp(call)

        def pullback(gradient):
            found = pull(gradient)
            found.key = 1.01 * found.key
            return found

        return output, pullback


class GradientForgetsMask(Plain):
    def _vjp(self, call):
        output, _ = super()._vjp(call)
        return output, super()._vjp(replace(call, mask=None))[1]


class GradientForgetsDropout(Plain):
    def _vjp(self, call):
        output, _ = super()._vjp(call)
        return output, super()._vjp(replace(call, seed=None))[1]


class BiasGradientTooLarge(Plain):
    def _vjp(self, call):
        output, pull = super()._vjp(call)

        def pullback(gradient):
            found = pull(gradient)
            found.bias = None if found.bias is None else 1.01 * found.bias
            return found

        return output, pullback


class NoParameterGradient(Plain):
    def _vjp(self, call):
        output, pull = super()._vjp(call)
        return output, lambda gradient: replace(pull(gradient), parameters={})


class ForgetsSharedInputs(Plain):
    def vjp(self, query, key=None, value=None, **options):
        key = query if key is None else key
        return super().vjp(query, key, key if value is None else value, **options)


class GateGradientTooLarge(PlainGated):
    def _vjp(self, call):
        output, pull = super()._vjp(call)

        def pullback(gradient):
            found = pull(gradient)
            found.side["gate"] *= 1.01
            return found

        return output, pullback


class WidensGradients(Plain):
    def attend_vjp(self, *arrays: Any, **options: Any):
        output, pull = super().attend_vjp(*arrays, **options)

        def pullback(gradient):
            found = pull(gradient)
            return replace(found, query=found.query.astype(np.float64))

        return output, pullback


class PullbackOnlyOnce(Plain):
    def _vjp(self, call):
        output, pull = super()._vjp(call)
        calls: list[Any] = []

        def pullback(gradient):
            calls.append(gradient)
            return pull(gradient if len(calls) == 1 else 0 * gradient)

        return output, pullback


class PartsForgetTheirWeight(Plain):
    def _partial(self, call):
        state = super()._partial(call)
        return replace(state, log_sum_exp=np.zeros_like(state.log_sum_exp))


class PartsForgetTheirPlace(Plain):
    def _partial(self, call):
        return super()._partial(replace(call, key_start=0))


class PartsStayWide(Plain):
    def attend_partial(self, *arrays: Any, **options: Any):
        # Without a dtype, a state finishes in the one that it was computed in.
        return replace(super().attend_partial(*arrays, **options), dtype=None)


class AcceptsAnyPart(Plain):
    def attend_partial(self, query, key, value, *, start=0, total=None, **options):
        return super().attend_partial(query, key, value, start=max(start, 0), **options)


class CachedOutputDiffers(Plain):
    def _cached(self, call):
        state = super()._cached(call)
        return replace(state, output=state.output + call.query.dtype.type(1e-3))


class FirstCachedSequenceForAll(Plain):
    def _cached(self, call):
        state = super()._cached(call)
        return replace(state, output=np.broadcast_to(state.output[:1], state.output.shape))


class CachesForgetMasks(Plain):
    def _cached(self, call):
        return super()._cached(replace(call, mask=None))


class CachesForgetBiases(Plain):
    def _cached(self, call):
        return super()._cached(replace(call, bias=None))


class TakesAnyCache(Plain):
    def attend_cached(self, query, *caches, **options):
        try:
            return super().attend_cached(query, *caches, **options)
        except PolyattnError:
            return np.zeros_like(query)


class _Observes(Plain):
    def _observe(self, call, wanted):
        output, found = super()._observe(call, wanted)
        return self._change(call, output, found)

    def _change(self, call, output, found):
        return output, found


class ObservedOutputDiffers(_Observes):
    def _change(self, call, output, found):
        return output + 1e-3, found


class ColumnMassByQuery(_Observes):
    def _change(self, call, output, found):
        if "column_mass" in found:
            found["column_mass"] = self._weights(call)[0].sum(axis=-1)
        return output, found


class HalvedWeights(_Observes):
    def _change(self, call, output, found):
        if "weights" in found:
            found["weights"] = found["weights"] / 2
        return output, found


class TopKeysOfTheOrder(_Observes):
    def _change(self, call, output, found):
        if "top_keys" in found:
            found["top_keys"] = np.sort(found["top_keys"], axis=-1)
        return output, found


class EntropyInBits(_Observes):
    def _change(self, call, output, found):
        if "entropy" in found:
            found["entropy"] = found["entropy"] / np.log(2)
        return output, found


class LogSumExpTooLarge(_Observes):
    def _change(self, call, output, found):
        if "log_sum_exp" in found:
            found["log_sum_exp"] = 1.1 * found["log_sum_exp"]
        return output, found


class LogSumExpIgnoresBias(_Observes):
    def _change(self, call, output, found):
        if "log_sum_exp" in found:
            found["log_sum_exp"] = self._weights(replace(call, bias=None))[1]
        return output, found


class AlwaysDrops(Plain):
    def _forward(self, call):
        return super()._forward(call if self.config.dropout == 0 else replace(call, seed=0))


class IgnoresSeed(Plain):
    def _kept(self, call, weights):
        return super()._kept(call if call.seed is None else replace(call, seed=0), weights)


class DoesNotRescale(Plain):
    def _kept(self, call, weights):
        return (super()._kept(call, weights) > 0).astype(weights.dtype)


class InventsSeed(Plain):
    def attend(self, query, key, value, *, rng=None, **options):
        return super().attend(query, key, value, rng=0 if rng is None else rng, **options)
