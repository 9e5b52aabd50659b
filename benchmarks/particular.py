"""Windows, dense masks and biases, decoding, half precision, small calls: other ways than tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import alternatives
import numpy as np
import timing
from plain_attention import inputs

import polyattn as pa

TITLE = "Windows, dense masks and biases, decoding, bfloat16, small calls: time of torch ÷ ours"


def measure() -> list[dict[str, object]]:
    """One row each."""
    return [*_window(), *_dense(), *_decoding(), *_half(), *_small()]


def _row(what: str, ours: Callable[[], Any], theirs: Any, remark: str = "") -> dict[str, object]:
    timing.say(what)
    candidates = {"ours": ours} | ({} if theirs is None else {"torch": theirs})
    seconds = timing.interleaved(candidates)
    row: dict[str, object] = {"what": what, "ms": 1e3 * seconds["ours"]}
    if theirs is not None:
        row["torch ÷ ours"] = seconds["torch"] / seconds["ours"]
    if remark:
        row["remark"] = remark
    return row


def _window() -> list[dict[str, object]]:
    tokens = 4096 if timing.quick else 16384
    q, k, v = inputs(1, 1, tokens, 64)
    i, j = np.ogrid[:tokens, :tokens]
    theirs = None
    if alternatives.torch() is not None:
        theirs = alternatives.sdpa(q, k, v, mask=(j <= i) & (j > i - 256))
    window = pa.create("sliding-window", dim=64, window=256)
    what = f"causal window of 256, {tokens:,} tokens; torch with a dense mask"
    return [_row(what, lambda: window.attend(q, k, v), theirs)]


def _dense() -> list[dict[str, object]]:
    q, k, v = inputs(1, 8, 1024, 64)
    rng = np.random.default_rng(1)
    flash = pa.create("flash", dim=512, heads=8)
    seen = rng.random((1024, 1024)) < 0.9
    bias = rng.standard_normal((1, 8, 1024, 1024), dtype=np.float32)
    return [
        _row(
            "1 × 8 × 1,024 × 64, dense mask",
            lambda: flash.attend(q, k, v, mask=seen),
            alternatives.sdpa(q, k, v, mask=seen),
        ),
        _row(
            "1 × 8 × 1,024 × 64, bias of each head",
            lambda: flash.attend(q, k, v, bias=bias),
            alternatives.sdpa(q, k, v, mask=bias),
        ),
    ]


def _decoding() -> list[dict[str, object]]:
    rows = []
    for batch, heads, keys in ((8, 12, 4096), (1, 1, 65536)):
        rng = np.random.default_rng(0)
        q = rng.standard_normal((batch, heads, 1, 64), dtype=np.float32)
        k, v = rng.standard_normal((2, batch, heads, keys, 64), dtype=np.float32)
        flash = pa.create("flash", dim=64 * heads, heads=heads)
        what = f"1 query, {batch} × {heads} heads, {keys:,} keys"
        rows.append(
            _row(what, lambda m=flash, a=(q, k, v): m.attend(*a), alternatives.sdpa(q, k, v))
        )
    return rows


def _half() -> list[dict[str, object]]:
    import importlib.util

    if not importlib.util.find_spec("ml_dtypes"):
        return [{"what": "bfloat16", "remark": "skipped: ml_dtypes is not installed"}]
    import ml_dtypes

    q, k, v = inputs(1, 8, 2048, 64)
    low = [x.astype(ml_dtypes.bfloat16) for x in (q, k, v)]
    flash = pa.create("flash", dim=512, heads=8)
    theirs = alternatives.sdpa(q, k, v, dtype="bfloat16")
    row = _row("bfloat16, 1 × 8 × 2,048 × 64", lambda: flash.attend(*low), theirs)
    exact = alternatives.numpy_attention(*(x.astype(np.float64) for x in low))
    errors = [float(np.abs(flash.attend(*low).astype(np.float64) - exact).max())]
    if theirs is not None:
        errors.append(float(np.abs(theirs().double().numpy() - exact).max()))
    row["remark"] = "error, ours and torch's: " + ", ".join(f"{e:.1e}" for e in errors)
    return [row]


def _small() -> list[dict[str, object]]:
    q, k, v = inputs(1, 1, 16, 64)
    flash = pa.create("flash", dim=64)
    return [_row("1 × 1 × 16 × 64", lambda: flash.attend(q, k, v), alternatives.sdpa(q, k, v))]
