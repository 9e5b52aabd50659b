"""Plain attention against NumPy's matrix products and, where installed, PyTorch's fused kernel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable

import numpy as np
from timing import interleaved

import polyattn as pa

WORK = (
    # batch, heads, tokens, head size
    (32, 12, 512, 64),
    (1, 8, 4096, 64),
    (1, 1, 16384, 64),
    (8, 12, 128, 64),
)
_NUMPY_LIMIT = 1 << 28  # scores beyond which the n × n form of NumPy is left out


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """The form with matmul that a user would write."""
    scores = np.matmul(q, k.swapaxes(-1, -2))
    scores *= np.float32(q.shape[-1] ** -0.5)
    if causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.matmul(scores, v)


def forward() -> list[dict[str, object]]:
    """Time of the alternatives over ours; higher is better for us."""
    rows = []
    for batch, heads, tokens, size in WORK:
        rng = np.random.default_rng(0)
        q, k, v = rng.standard_normal((3, batch, heads, tokens, size), dtype=np.float32)
        for causal in (False, True):
            sdpa = pa.create("scaled-dot-product", dim=heads * size, heads=heads, causal=causal)
            candidates: dict[str, Callable[[], object]] = {
                "polyattn": lambda m=sdpa, a=(q, k, v): m.attend(*a)
            }
            if batch * heads * tokens**2 <= _NUMPY_LIMIT:
                candidates["numpy"] = lambda a=(q, k, v), c=causal: numpy_attention(*a, c)
            if importlib.util.find_spec("torch"):
                candidates["torch"] = _torch(q, k, v, causal)
            seconds = interleaved(candidates)
            pairs = tokens * (tokens + 1) // 2 if causal else tokens**2
            row: dict[str, object] = {
                "batch × heads × tokens × size": f"{batch} × {heads} × {tokens} × {size}",
                "causal": causal,
                "milliseconds": 1e3 * seconds["polyattn"],
                "GFLOP/s": 4e-9 * batch * heads * pairs * size / seconds["polyattn"],
            }
            for name in ("numpy", "torch"):
                if name in seconds:
                    row[f"{name} ÷ ours"] = seconds[name] / seconds["polyattn"]
            rows.append(row)
    return rows


def _torch(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> Callable[[], object]:
    import torch

    from polyattn_core.simd import threads

    torch.set_num_threads(threads.limit())
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)


_MEMORY = """
import resource, numpy as np, polyattn as pa
flash = pa.create("flash", dim=64)
small = np.ones((1, 64, 64), np.float32)
flash(small)
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 32768, 64), dtype=np.float32)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
out = flash(q, k, v)
print(peak() - before - out.nbytes)
"""


def memory() -> list[dict[str, object]]:
    """Peak resident memory of a call beyond inputs and output, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY], capture_output=True, check=True, text=True
    )
    return [{"what": "flash, 32,768 tokens × 64", "megabytes": float(done.stdout) / 1e6}]
