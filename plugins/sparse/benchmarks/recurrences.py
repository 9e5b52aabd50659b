"""Recurrences and kernel features against `flash`, and how their time grows with the length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from timing import interleaved

import polyattn as pa

TITLE = "Linear and recurrent attention: time relative to flash, and its growth with the length"
HEADS, SIZE = 8, 64
NAMES = (
    "linear", "favor", "cosformer", "retention", "gated-linear", "delta-rule", "gated-delta",
    "mamba2",
)  # fmt: skip


def measure(
    tokens: int = 4096, lengths: tuple[int, ...] = (2048, 65_536), rounds: int = 3
) -> list[dict[str, Any]]:
    """At 1 × 8 × `tokens` × 64 in float32, causal, with gates for each token where there are any.

    `growth` is the exponent between the lengths: 1 is linear, 2 quadratic.
    """
    rows = []
    flash = _calls("flash", tokens)
    for name in NAMES:
        own = _calls(name, tokens)
        forward = interleaved({"flash": flash[0], "own": own[0]}, rounds)
        both = interleaved({"flash": flash[1], "own": own[1]}, 1)
        first, last = (
            interleaved({"own": _calls(name, length)[0]}, rounds)["own"] for length in lengths
        )
        rows.append(
            {
                "mechanism": name,
                "tokens": tokens,
                "milliseconds": 1e3 * forward["own"],
                "flash ÷ this": forward["flash"] / forward["own"],
                "with gradients, flash ÷ this": both["flash"] / both["own"],
                "growth": float(np.log(last / first) / np.log(lengths[1] / lengths[0])),
            }
        )
    return rows


def _calls(name: str, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A call, and one with gradients."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, 1, HEADS, tokens, SIZE), dtype=np.float32)
    options: dict[str, Any] = {"dim": HEADS * SIZE, "heads": HEADS}
    names = {side.name for side in pa.spec(name).capabilities.side_inputs}
    if pa.spec(name).capabilities.causal:
        options["causal"] = True
    side: dict[str, Any] = {}
    if "log_decay" in names:
        size = SIZE if name == "gated-linear" else 1
        side["log_decay"] = -rng.exponential(0.1, (HEADS, tokens, size)).astype(np.float32)
    if "beta" in names:
        side["beta"] = rng.random((HEADS, tokens), np.float32)
    if "step" in names:
        side["step"] = rng.standard_normal((HEADS, tokens), np.float32)
    mechanism = pa.create(name, **options)

    def both() -> object:
        output, pullback = mechanism.attend_vjp(*arrays, **side)
        return pullback(output)

    return lambda: mechanism.attend(*arrays, **side), both


if __name__ == "__main__":
    for row in measure():
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in row.values()), sep="\t")
