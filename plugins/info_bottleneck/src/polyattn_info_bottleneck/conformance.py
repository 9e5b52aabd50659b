"""Side inputs for the conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np


def noise(
    rng: np.random.Generator, lead: tuple[int, ...], heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """One noise for all keys, so that it stays theirs when they change places; z_dim is 4."""
    return {"noise": rng.standard_normal((1, 1, 4))}
