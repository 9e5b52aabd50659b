"""Mechanisms of this family, and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_sparse.plugin import MECHANISMS

Array = npt.NDArray[Any]
SPECS = {spec.name: spec for spec in MECHANISMS}


@pytest.fixture(scope="session")
def create() -> Callable[..., Any]:
    """`create(name, **options)` without a registry: what is tested need not be installed."""

    def make(name: str, **options: Any) -> Any:
        spec = SPECS[name]
        config = build_config(resolve(spec.config), options, mechanism=spec.full_name)
        return resolve(spec.factory)(config, spec=spec)

    return make


@pytest.fixture(scope="session")
def arrays() -> Callable[..., tuple[Array, Array, Array]]:
    """Normally distributed query, key and value, by heads."""

    def make(
        queries: int = 5, keys: int = 7, *, heads: int = 2, key_heads: int | None = None,
        size: int = 4, seed: int = 0,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        rng = np.random.default_rng(seed)
        key_heads = key_heads or heads
        return (
            rng.standard_normal((2, heads, queries, size)),
            rng.standard_normal((2, key_heads, keys, size)),
            rng.standard_normal((2, key_heads, keys, size + 1)),
        )

    return make


@pytest.fixture(scope="session")
def dense() -> Callable[..., Array]:
    """Soft-max attention over the visible pairs, all of them in memory."""

    def attend(
        query: Array, key: Array, value: Array, visible: Any = True, scale: float | None = None,
        adjust: Callable[[Array], Array] = lambda scores: scores,
    ) -> Array:  # fmt: skip
        group = query.shape[1] // key.shape[1]
        key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = adjust(scale * np.einsum("bhqd,bhkd->bhqk", query, key))
        visible = np.broadcast_to(visible, scores.shape)
        some = visible.any(axis=-1, keepdims=True)
        scores = np.where(visible | ~some, scores, -np.inf)
        return np.where(some, scipy.special.softmax(scores, axis=-1) @ value, 0)

    return attend
