"""Decoding: one query against long caches, by storage; against torch where it is installed.

python benchmarks/decoding.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import alternatives
import numpy as np
from timing import interleaved

import polyattn as pa

WORK = (
    # batch, heads, tokens, head size
    (8, 12, 4096, 64),
    (1, 1, 65536, 64),
)
STORAGES = ("float32", "float16", "bfloat16", "int8", "int4")


def measure() -> list[dict[str, object]]:
    """Milliseconds of a token, and the time of the alternatives over it."""
    rows = []
    for batch, heads, tokens, size in WORK:
        rng = np.random.default_rng(0)
        query = rng.standard_normal((batch, heads, 1, size), dtype=np.float32)
        key, value = rng.standard_normal((2, batch, heads, tokens, size), dtype=np.float32)
        flash, same = (
            pa.create("flash", dim=heads * size, heads=heads, causal=True, reproducible=bits)
            for bits in (False, True)
        )
        caches = {}
        for storage in STORAGES:
            caches[storage] = pa.KVCache.of(flash, batch=batch, capacity=tokens, storage=storage)
            caches[storage].append(key, value)
        candidates: dict[str, Callable[[], object]] = {
            storage: partial(flash.attend_cached, query, cache) for storage, cache in caches.items()
        }
        candidates["float32, reproducible"] = partial(same.attend_cached, query, caches["float32"])
        theirs = alternatives.sdpa(query, key, value)
        if theirs is not None:
            candidates["torch"] = theirs
        seconds = interleaved(candidates)
        torch = seconds.pop("torch", None)
        for name, taken in seconds.items():
            row: dict[str, object] = {
                "batch × heads × tokens × size": f"{batch} × {heads} × {tokens} × {size}",
                "storage": name,
                "milliseconds": 1e3 * taken,
                "float32 ÷ this": seconds["float32"] / taken,
            }
            if torch is not None:
                row["torch ÷ this"] = torch / taken
            rows.append(row)
    return rows


if __name__ == "__main__":
    for found in measure():
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in found.values()), sep="  ")
