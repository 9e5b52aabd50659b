"""`threads=1` means one thread, in everything that a mechanism does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn_core.simd import threads

SELF_SUFFICIENT = [
    name
    for name in pa.available()
    if not any(side.required for side in pa.spec(name).capabilities.side_inputs)
]


@pytest.mark.parametrize("name", SELF_SUFFICIENT)
def test_one_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = pa.create(name, dim=128, heads=2, threads=1)
    asked: list[int] = []
    run = threads.run

    def counted(kernel: Any, arguments: Any, tasks: int, workers: int) -> None:
        asked.append(min(workers, tasks, threads.limit()))
        run(kernel, arguments, tasks, workers)

    monkeypatch.setattr(threads, "run", counted)
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 2, 500, 64), dtype=np.float32) / 10
    if pa.spec(name).capabilities.gradient:
        output, pull = mechanism.attend_vjp(query, key, value)
        pull(output)
    else:
        mechanism.attend(query, key, value)
    assert max(asked, default=1) <= 1
