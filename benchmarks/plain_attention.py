"""Plain attention against torch, NumPy, flex_attention and onnxruntime; accuracy beside torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import alternatives
import numpy as np
import peak
import timing

import polyattn as pa

TITLE = "Plain attention, float32, forward: time of the alternative ÷ ours"
WORK = (
    # batch, heads, tokens, head size
    (32, 12, 512, 64),
    (1, 8, 4096, 64),
    (1, 1, 16384, 64),
)
_FEW = 1 << 24  # scores up to which slow alternatives take part


def inputs(batch: int, heads: int, tokens: int, size: int) -> Any:
    """Random queries, keys and values."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, batch, heads, tokens, size), dtype=np.float32)


def name(batch: int, heads: int, tokens: int, size: int) -> str:
    """The work as tables say it."""
    return f"{batch} × {heads} × {tokens:,} × {size}"


def error(found: Any, q: Any, k: Any, v: Any, causal: bool) -> float:
    """Largest difference from double precision, of some rows of one head."""
    tokens = q.shape[2]
    rows = np.linspace(0, tokens - 1, 64).astype(int)
    query, key, value = (x[0, 0].astype(np.float64) for x in (q, k, v))
    scores = query[rows] @ key.T / np.sqrt(q.shape[-1])
    if causal:
        scores[np.arange(tokens) > rows[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = weights / weights.sum(axis=-1, keepdims=True) @ value
    return float(np.abs(np.asarray(found)[0, 0][rows] - exact).max())


def measure() -> list[dict[str, object]]:
    """Time of the alternatives over ours; higher is better for us."""
    rows = []
    for work in (*WORK, (2, 12, 512, 64)):
        batch, heads, tokens, size = work
        q, k, v = inputs(*work)
        for causal in (False, True):
            timing.say(f"{name(*work)}{', causal' if causal else ''}")
            flash = pa.create("flash", dim=heads * size, heads=heads, causal=causal)
            candidates: dict[str, Callable[[], Any] | None] = {
                "ours": lambda m=flash, a=(q, k, v): m.attend(*a),
                "torch": alternatives.sdpa(q, k, v, causal),
            }
            if batch * heads * tokens**2 <= _FEW:
                candidates["numpy"] = lambda a=(q, k, v), c=causal: alternatives.numpy_attention(
                    *a, c
                )
                candidates["onnxruntime"] = alternatives.onnx(q, k, v, causal)
                if not causal:
                    candidates["flex_attention"] = alternatives.flex(q, k, v)
            present = {n: call for n, call in candidates.items() if call is not None}
            seconds = timing.interleaved(present)
            pairs = tokens * (tokens + 1) // 2 if causal else tokens**2
            rate = 4e-9 * batch * heads * pairs * size / seconds["ours"]
            row: dict[str, object] = {
                "batch × heads × tokens × size": name(*work) + (", causal" if causal else ""),
                "ms": 1e3 * seconds["ours"],
                "GFLOP/s": rate,
                "% of peak": 100 * rate / peak.gigaflops(),
            }
            for other in ("torch", "numpy", "onnxruntime", "flex_attention"):
                if other in seconds:
                    row[f"{other} ÷ ours"] = seconds[other] / seconds["ours"]
            row["error"] = error(present["ours"](), q, k, v, causal)
            if "torch" in present:
                row["error of torch"] = error(present["torch"](), q, k, v, causal)
            rows.append(row)
    if alternatives.flex_problem():
        rows.append({"batch × heads × tokens × size": "flex_attention skipped: "
                     + alternatives.flex_problem()})  # fmt: skip
    return rows
