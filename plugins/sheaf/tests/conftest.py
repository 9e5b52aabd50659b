"""Mechanisms of this family, and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_sheaf.plugin import MECHANISMS

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
        queries: int = 5, keys: int = 7, *, heads: int = 2, size: int = 4, seed: int = 0
    ) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(seed)
        return (
            rng.standard_normal((2, heads, queries, size)),
            rng.standard_normal((2, heads, keys, size)),
            rng.standard_normal((2, heads, keys, size + 1)),
        )

    return make
