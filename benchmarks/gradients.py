"""Forward and backward together against torch's autograd."""

from __future__ import annotations

from typing import Any

import alternatives
import numpy as np
import timing
from plain_attention import WORK, inputs, name

import polyattn as pa

TITLE = "Forward and backward, float32: time of torch ÷ ours"


def round_trip(mechanism: Any, q: Any, k: Any, v: Any, incoming: Any) -> Any:
    """Output and all gradients."""
    _, pullback = mechanism.attend_vjp(q, k, v)
    return pullback(incoming)


def measure() -> list[dict[str, object]]:
    """The first rows of plain attention."""
    rows = []
    for work in WORK:
        _, heads, _, size = work
        q, k, v = inputs(*work)
        incoming = np.random.default_rng(1).standard_normal(q.shape, dtype=np.float32)
        for causal in (False, True):
            timing.say(f"{name(*work)}{', causal' if causal else ''}")
            flash = pa.create("flash", dim=heads * size, heads=heads, causal=causal)
            candidates = {"ours": lambda m=flash, a=(q, k, v, incoming): round_trip(m, *a)}
            other = alternatives.sdpa_with_gradients(q, k, v, causal, incoming)
            if other is not None:
                candidates["torch"] = other
            seconds = timing.interleaved(candidates, 3, 0.05)
            row: dict[str, object] = {
                "batch × heads × tokens × size": name(*work) + (", causal" if causal else ""),
                "ms": 1e3 * seconds["ours"],
            }
            if "torch" in seconds:
                row["torch ÷ ours"] = seconds["torch"] / seconds["ours"]
            rows.append(row)
    return rows
