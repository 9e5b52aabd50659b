"""Every installed mechanism relative to plain attention: time forward, and with gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from timing import interleaved

import polyattn as pa

BATCH, HEADS, SIZE = 1, 8, 64


def measure(tokens: int = 1024, rounds: int = 5) -> list[dict[str, object]]:
    """Time relative to `flash` at 1 × 8 × `tokens` × 64, float32, with default options."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, BATCH, HEADS, tokens, SIZE), dtype=np.float32)
    flash = pa.create("flash", dim=HEADS * SIZE, heads=HEADS)
    rows: list[dict[str, object]] = []
    for name in pa.available():
        spec = pa.spec(name)
        if any(side.required for side in spec.capabilities.side_inputs):
            continue
        try:
            mechanism = pa.create(name, dim=HEADS * SIZE, heads=HEADS)
            mechanism.attend(q, k, v)
        except pa.errors.PolyattnError as error:
            rows.append({"mechanism": name, "error": str(error)})
            continue
        forward: dict[str, Callable[[], object]] = {
            "plain": lambda: flash.attend(q, k, v),
            "this": lambda m=mechanism: m.attend(q, k, v),
        }
        seconds = interleaved(forward, rounds, 0.05)
        row: dict[str, object] = {
            "mechanism": name,
            "milliseconds": 1e3 * seconds["this"],
            "× flash": seconds["this"] / seconds["plain"],
        }
        if spec.capabilities.gradient:
            both: dict[str, Callable[[], object]] = {
                "plain": lambda: _round_trip(flash, q, k, v),
                "this": lambda m=mechanism: _round_trip(m, q, k, v),
            }
            seconds = interleaved(both, rounds, 0.05)
            row["with gradients, × flash"] = seconds["this"] / seconds["plain"]
        rows.append(row)
    return rows


def _round_trip(mechanism: object, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> object:
    output, pullback = mechanism.attend_vjp(q, k, v)  # type: ignore[attr-defined]
    return pullback(output)
