"""The mechanisms `linear` and `favor`."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.partial import PartialState

from ..visibility import visible_counts
from .config import CosformerConfig, FavorConfig, LinearConfig
from .features import augmented, draw

if TYPE_CHECKING:
    from .kernels.engine import FeatureMap

_COLUMNS = 256  # of weights that are computed at once


class KernelFeatureMechanism(Mechanism):
    """Attention whose weights are products of features of the query and of the key."""

    config: LinearConfig | FavorConfig | CosformerConfig

    @abstractmethod
    def _features(self, call: Call) -> FeatureMap:
        """The feature map for tokens like those of the call."""

    def _epsilon(self) -> float:
        """What is added to the normaliser."""
        return 0.0

    def _counts(self, call: Call) -> Array:
        counts = visible_counts(call.mask, call.shape, call.key_start, call.key.shape[2])
        if counts is None:
            raise self._lacks(
                "masks that hide a key and show a later one: of its masks, only & and | are taken",
                "masks",
                "dense",
            )
        return counts

    def _attend(self, call: Call, counts: Array, epsilon: float) -> tuple[Array, Array]:
        from .kernels import engine

        return engine.forward(
            self._features(call), call.query, call.key, call.value, counts, epsilon=epsilon,
            limit=self.config.threads,
        )  # fmt: skip

    def _forward(self, call: Call) -> Array:
        return self._attend(call, self._counts(call), self._epsilon())[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        from .kernels import engine

        counts = self._counts(call)
        out, log_normaliser = self._attend(call, counts, self._epsilon())

        def pullback(gradient: Array) -> Gradients:
            return Gradients(
                *engine.gradients(
                    self._features(call), call.query, call.key, call.value, counts, out,
                    log_normaliser, gradient, limit=self.config.threads,
                )
            )  # fmt: skip

        return out, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        from .kernels import engine

        counts = self._counts(call)
        out, log_normaliser = self._attend(call, counts, self._epsilon())
        found: dict[str, Array] = {}
        if "log_sum_exp" in wanted:
            found["log_sum_exp"] = log_normaliser
        if "weights" in wanted:
            found["weights"] = self._weights(call, counts)
        if "column_mass" in wanted:
            found["column_mass"] = engine.column_mass(
                self._features(call), call.query, call.key, counts, log_normaliser,
                limit=self.config.threads,
            )  # fmt: skip
        return out, found

    def _weights(self, call: Call, counts: Array) -> Array:
        """Weights are the outputs for values that are unit vectors."""
        batch, heads, queries = call.query.shape[:3]
        key_heads, keys = call.key.shape[1:3]
        weights = np.zeros((batch, heads, queries, keys), call.dtype)
        for first in range(0, int(counts.max()), _COLUMNS):
            last = min(first + _COLUMNS, keys)
            units = np.eye(keys, last - first, -first, call.dtype)
            value = np.broadcast_to(units, (batch, key_heads, *units.shape))
            part = Call(call.query, call.key, value, call.shape)
            weights[..., first:last] = self._attend(part, counts, self._epsilon())[0]
        return weights

    def _partial(self, call: Call) -> PartialState:
        out, log_normaliser = self._attend(call, self._counts(call), 0.0)
        sink = None
        if self._epsilon() > 0:
            # What is added to the whole must be added once: like a sink with this score.
            sink = np.full(call.query.shape[1], math.log(self._epsilon()), call.dtype)
        return PartialState(out, log_normaliser, sink)


class Linear(KernelFeatureMechanism):
    """Linear attention: features elu + 1 in place of the exponential, sums over keys taken once.

        Σⱼ φ(qᵢ)·φ(kⱼ) vⱼ / (Σⱼ φ(qᵢ)·φ(kⱼ) + ε) = φ(qᵢ) S / (φ(qᵢ) z + ε)
        S = Σⱼ φ(kⱼ) vⱼᵀ,   z = Σⱼ φ(kⱼ),   φ(x) = elu(scale·x) + 1

    with sums over the keys that query i sees: a running sum where the mask is causal, computed a
    block at a time. With ``features="relu"``, φ(x) = max(scale·x, 0); a query whose products with
    all keys are 0, or too small for the dtype, gets 0. The log-sum-exp is the logarithm of the
    normaliser.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward; the weights,
    on request, O(n² d) time and O(n²) memory. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Masks are causal, padding and prefix masks,
    and what & and | make of them. Calls from several threads are safe.

    References
    ----------
    Katharopoulos et al., Transformers are RNNs: fast autoregressive transformers with linear
    attention, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 1000, 64), np.float32)
    >>> linear = pa.create("linear", dim=64, heads=4, causal=True)
    >>> linear(x).shape
    (2, 1000, 64)
    """

    config: LinearConfig

    def _features(self, call: Call) -> FeatureMap:
        from .kernels.engine import FeatureMap

        return FeatureMap(self.config.features, self.config.scale)

    def _epsilon(self) -> float:
        return self.config.epsilon


class Favor(KernelFeatureMechanism):
    """FAVOR+: soft-max attention approximated by positive orthogonal random features.

        Σⱼ φ(qᵢ)·φ(kⱼ) vⱼ / Σⱼ φ(qᵢ)·φ(kⱼ),   φ_r(x) = exp(ω_r·x̃ − ‖x̃‖²/2) / √m,   x̃ = √scale · x

    where scale is 1/√(head size) unless given: queries and keys are divided by d^¼ each. For normal
    ω, E φ(q)·φ(k) = exp(scale·q·k), and one pair's relative variance is (exp ‖q̃ + k̃‖² − 1)/m. With
    ``kind="hyperbolic"`` φ also has the features of −ω, 1/√(2m) each, which multiplies the variance
    by (1 − exp(−‖q̃ + k̃‖²))/2. Orthogonal ω lower it further.

    The projections ω follow from `seed`: the same for all heads and in every process, not learned,
    no parameters; :attr:`projection` shows them. Features are kept relative to the largest of each
    column, so that neither they nor the normaliser underflow, at any size of heads or inputs. The
    log-sum-exp is the logarithm of the normaliser, an estimate of that of the soft-max.

    O(n m d) time, O(n d + m d) memory, forward and backward; the weights, on request, O(n² m) time
    and O(n²) memory. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Masks are causal, padding and prefix masks,
    and what & and | make of them. Calls from several threads are safe.

    References
    ----------
    Choromanski et al., Rethinking attention with Performers, arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 1000, 64), np.float32)
    >>> favor = pa.create("favor", dim=64, heads=4, features=128)
    >>> favor(x).shape
    (2, 1000, 64)
    >>> favor.projection.shape
    (128, 16)
    """

    config: FavorConfig

    @functools.cached_property
    def projection(self) -> Array:
        """The projections ω (features, head size), float64 and read-only."""
        return draw(self.config)

    def _features(self, call: Call) -> FeatureMap:
        from .kernels.engine import FeatureMap

        prepared: dict[Any, FeatureMap] = self.__dict__.setdefault("_prepared", {})
        found = prepared.get(call.dtype)
        if found is None:
            scale = self.config.scale or 1 / math.sqrt(self.config.head_dim)
            rows, constant = augmented(self.projection, self.config.kind, scale)
            rows = np.ascontiguousarray(rows, call.dtype)
            found = prepared[call.dtype] = FeatureMap("exponential", scale, rows, constant)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What follows from the configuration is drawn anew.
        hidden = ("projection", "_prepared")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}
