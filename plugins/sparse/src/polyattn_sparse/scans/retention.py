"""The mechanism `retention`."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call
from polyattn_core.positions import rotate

from .config import RetentionConfig
from .gates import Gate, Gates
from .mechanism import Recurrence, Undo


class Retention(Recurrence):
    """Retention: a sum over the past that decays by a fixed factor a token.

        S_t = γ S_{t−1} + k_t v_tᵀ,   o_t = scale · S_tᵀ q_t = scale · Σ_{j≤t} γ^{t−j} (q_t·k_j) v_j

    where γ = 1 − 2^{−5−h} for key head h unless `decays` are given, and scale is 1/√(head size)
    unless given. With `position="rope"` queries and keys turn with their positions, as RetNet has
    it; its group normalisation and its gate belong to the layer around.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward; a step costs
    O(d²). Shapes and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; as many
    keys as queries. Padding is the mask: a hidden token leaves the state as it is. Calls from
    several threads are safe.

    References
    ----------
    Sun et al., Retentive network: a successor to transformer for large language models,
    arXiv:2307.08621.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((1, 300, 64), np.float32)
    >>> retention = pa.create("retention", dim=64, heads=4)
    >>> heads = x.reshape(1, 300, 4, 16).swapaxes(1, 2)
    >>> whole = retention.attend(heads, heads, heads)
    >>> start, state = retention.scan(*[heads[:, :, :200]] * 3)
    >>> rest, state = retention.scan(*[heads[:, :, 200:]] * 3, state=state)
    >>> np.allclose(np.concatenate((start, rest), axis=2), whole, atol=1e-5)
    True
    """

    config: RetentionConfig

    def _scale(self) -> float:
        return float(self.config.scale or self.config.head_dim**-0.5)

    def _gates(self, call: Call) -> Gates:
        decays = self.config.decays
        logs = np.log(decays or default_decays(self.config.key_heads)).astype(call.dtype)
        shape = (call.shape.batch, len(logs), call.key.shape[2], 1)
        return Gates(Gate(np.broadcast_to(logs[:, None, None], shape), lambda gradient: ({}, {})))

    def _prepared(self, call: Call, first: int) -> tuple[Array, Array, Undo | None]:
        rope = self.config.position
        if rope is None:
            return call.query, call.key, None
        places = first + np.arange(call.key.shape[2])

        def back(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            return (
                rotate(d_query, places, rope, inverse=True),
                rotate(d_key, places, rope, inverse=True),
            )

        return rotate(call.query, places, rope), rotate(call.key, places, rope), back


def default_decays(heads: int) -> list[float]:
    """1 − 2^(−5 − head)."""
    return [1 - 2.0 ** (-5 - head) for head in range(heads)]
