"""Rules written as a user would, relative to the same call without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import timing
from gradients import round_trip
from plain_attention import inputs

import polyattn as pa

TITLE = "Score rules of a user's own, 1 × 8 × 2,048 × 64, float32: time ÷ plain"
TOKENS, HEADS, SIZE = 2048, 8, 64


@pa.score_rule
def alibi(score: Any, i: Any, j: Any, slope: Any) -> Any:
    """Linear biases."""
    return score - slope * abs(i - j)


@pa.score_rule
def tanh_cap(score: Any, cap: Any) -> Any:
    """Soft capping."""
    return cap * math.tanh(score / cap)


@pa.score_rule
def relative_bias(score: Any, h: Any, i: Any, j: Any, table: Any, offset: Any) -> Any:
    """A table by head and distance."""
    return score + table[h, i - j + offset]


@pa.score_rule
def same_document(score: Any, b: Any, i: Any, j: Any, ids: Any) -> Any:
    """A mask."""
    return score if ids[b, i] == ids[b, j] else -math.inf


@pa.score_rule(row=pa.squared_norm, column=pa.squared_norm)
def poincare(dot: Any, row: Any, column: Any, sharpness: Any) -> Any:
    """Minus the distance in the Poincaré ball."""
    apart = max(row + column - 2 * dot, 1e-6)
    return -sharpness * math.acosh(1 + 2 * apart / ((1 - row) * (1 - column)))


def measure() -> list[dict[str, object]]:
    """Forward, and with gradients."""
    q, k, v = inputs(1, HEADS, TOKENS, SIZE)
    q, k = q / np.float32(20), k / np.float32(20)  # inside the ball
    rng = np.random.default_rng(0)
    rules: dict[str, dict[str, Any]] = {
        "plain": {},
        "ALiBi": {"score": alibi, "score_params": {"slope": 2.0 ** -np.arange(1.0, HEADS + 1)}},
        "soft cap": {"score": tanh_cap, "score_params": {"cap": 30.0}},
        "relative bias": {
            "score": relative_bias,
            "score_params": {
                "table": rng.standard_normal((HEADS, 2 * TOKENS - 1)), "offset": TOKENS - 1,
            },
        },
        "documents": {
            "score": same_document,
            "score_params": {"ids": np.sort(rng.integers(0, 8, (1, TOKENS)))},
        },
        "Poincaré": {"score": poincare, "score_params": {"sharpness": 1.0}, "scale": 1.0},
    }  # fmt: skip
    made = {
        name: pa.create("flash", dim=HEADS * SIZE, heads=HEADS, **options)
        for name, options in rules.items()
    }
    timing.say("forward")
    forward = timing.interleaved({n: lambda m=m: m.attend(q, k, v) for n, m in made.items()})
    timing.say("with gradients")
    both = timing.interleaved(
        {n: lambda m=m: round_trip(m, q, k, v, v) for n, m in made.items()}, 3, 0.05
    )
    return [
        {"rule": name, "÷ plain": forward[name] / forward["plain"],
         "with gradients, ÷ plain": both[name] / both["plain"]}
        for name in rules
    ]  # fmt: skip
