"""How much of exact attention `lsh`, `routing` and `clustered` keep, and what they cost."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

import polyattn as pa

TITLE = "Attention among like tokens: recall of exact attention, and time relative to flash"
SIZE = 64
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lsh", {"rounds": 1}),
    ("lsh", {"rounds": 4}),
    ("lsh", {"rounds": 8}),
    ("routing", {"clusters": 64}),
    ("clustered", {"clusters": 100, "top": 0}),
    ("clustered", {"clusters": 100, "top": 32}),
)


def measure(tokens: int = 16_384, groups: int = 128) -> list[dict[str, Any]]:
    """On queries and keys around `groups` random directions, one head of size 64, float32.

    `recall` is the share of the exact weights that lies on pairs which are computed (for
    `clustered`, all are: it is left out), `error` the mean distance of the outputs relative to
    the mean length of the exact ones.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((groups, SIZE))
    centres *= 12 / np.linalg.norm(centres, axis=1, keepdims=True)
    query, key = (
        (centres[rng.integers(0, groups, tokens)] + rng.standard_normal((tokens, SIZE)))
        .astype(np.float32)[None]
        for _ in range(2)
    )  # fmt: skip
    value = rng.standard_normal((1, tokens, SIZE), dtype=np.float32)
    flash = pa.create("flash", dim=SIZE)
    exact = flash.attend(query, key, value)
    plain = _seconds(lambda: flash.attend(query, key, value))
    rows = []
    for name, options in CASES:
        mechanism = pa.create(name, dim=SIZE, **options)
        side: dict[str, Any] = {}
        if name == "routing":
            centroids = None
            for _ in range(5):
                centroids = mechanism.learn(query, key, centroids)
            side["centroids"] = centroids
        found = mechanism.attend(query, key, value, **side)
        difference = np.linalg.norm(found - exact, axis=-1).mean()
        row: dict[str, Any] = {
            "mechanism": name,
            "options": ", ".join(f"{k}={v}" for k, v in options.items()),
            "error": float(difference / np.linalg.norm(exact, axis=-1).mean()),
            "flash ÷ this": plain / _seconds(partial(mechanism.attend, query, key, value, **side)),
        }
        if name != "clustered":
            row["recall"] = float(mechanism.recall(query, key, **side).mean())
        rows.append(row)
    return rows


def _seconds(call: Any, rounds: int = 3) -> float:
    call()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return sorted(found)[rounds // 2]


if __name__ == "__main__":
    for row in measure():
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in row.values()), sep="\t")
