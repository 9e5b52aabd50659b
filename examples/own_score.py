"""A score rule of your own: compiled on its own, run inside the tiles of the engine."""

import numpy as np

import polyattn as pa
from polyattn_core.simd.rules import score_rule
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism


@score_rule
def recency(score, query, key, half_life):
    """Scores fall with the distance between positions."""
    return score - abs(np.float32(query - key)) / half_life


@recency.derivative
def recency_derivative(score, query, key, half_life):
    distance = abs(np.float32(query - key))
    return (np.float32(1), distance / (half_life * half_life))


class RecencyConfig(ScaledConfig):
    """Options of `recency`."""

    half_life: float = 50.0
    """Distance at which a score has fallen by 1."""


class Recency(StreamingMechanism):
    """softmax(s − |i − j| / half-life) v."""

    def _rules(self, call):
        return [(recency, (self.config.half_life,))]


pa.register(
    MechanismSpec(
        name="recency",
        family="local",
        summary="Nearer keys count for more",
        factory=f"{__name__}:Recency",
        config=f"{__name__}:RecencyConfig",
        reference=f"{__name__}:Recency",
        capabilities=Capabilities(positional=True),
    )
)

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 200, 32))
attention = pa.create("recency", dim=32, half_life=20.0)
output, pullback = attention.vjp(x)
print(attention, "→", output.shape, "gradient", pullback(np.ones_like(output)).query.shape)

scores = x[0] @ x[0].T / np.sqrt(32) - abs(np.subtract.outer(np.arange(200), np.arange(200))) / 20
weights = np.exp(scores - scores.max(1, keepdims=True))
expected = weights / weights.sum(1, keepdims=True) @ x[0]
print("largest difference from NumPy:", f"{abs(output[0] - expected).max():.1e}")
assert np.allclose(output[0], expected)
