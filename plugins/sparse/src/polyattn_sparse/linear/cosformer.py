"""The mechanism `cosformer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ConfigError
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.partial import PartialState

from .config import CosformerConfig
from .mechanism import KernelFeatureMechanism

if TYPE_CHECKING:
    from .kernels.engine import FeatureMap


class Cosformer(KernelFeatureMechanism):
    """cosFormer: rectified features, and weights that fall like a cosine with the distance.

        Σⱼ wᵢⱼ vⱼ / (Σⱼ wᵢⱼ + ε),   wᵢⱼ = relu(qᵢ)·relu(kⱼ) cos(π(i − j) / 2M)

    where M is the `horizon`, as long as the longer of queries and keys unless given. The cosine of
    a difference is cos·cos + sin·sin, so that w is a product of features of twice the size, and
    sums over keys are taken once, running sums where the mask is causal. The last query is at the
    last key. A query whose products with all keys are 0 gets 0.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward. Shapes and
    errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; masks are causal, padding
    and prefix masks, and what & and | make of them. Calls from several threads are safe.

    Raises
    ------
    ConfigError
        By calls, where there are more tokens than the horizon.

    References
    ----------
    Qin et al., cosFormer: rethinking softmax in attention, arXiv:2202.08791.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> cosformer = pa.create("cosformer", dim=1, horizon=3)
    >>> weights = cosformer(np.ones((3, 1)), np.ones((3, 1)), np.eye(3))
    >>> weights[0] / weights[0, 0]  # cos 0°, cos 30°, cos 60°
    array([1.       , 0.8660254, 0.5      ])
    """

    config: CosformerConfig

    def _features(self, call: Call) -> FeatureMap:
        from .kernels.engine import FeatureMap

        return FeatureMap("relu", 1.0)

    def _epsilon(self) -> float:
        return self.config.epsilon

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._spread(call)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._spread(call)[0], wanted)

    def _partial(self, call: Call) -> PartialState:
        return super()._partial(self._spread(call)[0])

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        spread, query_back, key_back = self._spread(call)
        out, pull = super()._vjp(spread)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            found.query, found.key = query_back(found.query), key_back(found.key)
            return found

        return out, pullback

    def _spread(
        self, call: Call
    ) -> tuple[Call, Callable[[Array], Array], Callable[[Array], Array]]:
        """The call with queries and keys of twice the size, and the ways back."""
        queries, keys = call.shape.queries, call.shape.keys
        longest = max(queries, keys)
        horizon = self.config.horizon or longest
        if longest > horizon:
            raise ConfigError("horizon", horizon, f"at least the {longest} tokens of the call")
        # Only differences count: all places are from 0 to the longest, where both are positive.
        own = np.arange(queries) + max(0, keys - queries)
        theirs = np.arange(call.key.shape[2]) + call.key_start + max(0, queries - keys)
        query, query_back = _turned(call.query, own, horizon)
        key, key_back = _turned(call.key, theirs, horizon)
        return replace(call, query=query, key=key), query_back, key_back


def _turned(x: Array, places: Array, horizon: int) -> tuple[Array, Callable[[Array], Array]]:
    """(x cos, x sin) of the angle of each place, and the pullback."""
    angle = (math.pi / 2 / horizon) * places[:, None]
    cosine, sine = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    size = x.shape[-1]

    def back(gradient: Array) -> Array:
        return np.asarray(gradient[..., :size] * cosine + gradient[..., size:] * sine)

    return np.concatenate((x * cosine, x * sine), axis=-1), back
