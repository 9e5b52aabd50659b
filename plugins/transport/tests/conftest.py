"""Mechanisms of this family, and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_transport.plugin import MECHANISMS

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

    def make(queries: int = 5, keys: int = 7, *, heads: int = 2, size: int = 4, seed: int = 0):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng(seed)
        shapes = ((queries, size), (keys, size), (keys, size + 1))
        return tuple(rng.standard_normal((2, heads, *shape)) for shape in shapes)

    return make


@pytest.fixture(scope="session")
def ot() -> Any:
    """Python Optimal Transport."""
    return pytest.importorskip("ot", reason="POT is not installed: pip install POT==0.9.7")
