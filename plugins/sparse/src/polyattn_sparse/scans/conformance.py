"""Side inputs for the conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np

Lead = tuple[int, ...]


def gates(
    rng: np.random.Generator, lead: Lead, heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """Decays of every channel, some of which forget everything."""
    logs = -rng.exponential(0.3, (*lead, heads, keys, dim // heads))
    logs[..., 3::5, :1] = -np.inf
    return {"log_decay": logs}


def strengths(
    rng: np.random.Generator, lead: Lead, heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """Write strengths, 0 and 1 among them."""
    return {"beta": rng.uniform(-0.5, 1.5, (*lead, heads, keys)).clip(0, 1)}


def gates_and_strengths(
    rng: np.random.Generator, lead: Lead, heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """One decay a token, and write strengths."""
    logs = -rng.exponential(0.3, (*lead, heads, keys, 1))
    return {"log_decay": logs, **strengths(rng, lead, heads, queries, keys, dim)}


def steps(
    rng: np.random.Generator, lead: Lead, heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """Step sizes before the bias and softplus, and a state at the start."""
    return {"step": rng.normal(1, 1, (*lead, heads, keys))}
