"""Mechanisms of this family, and arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_info_geometry.plugin import MECHANISMS

SPECS = {spec.name: spec for spec in MECHANISMS}


@pytest.fixture(scope="session")
def create() -> Callable[..., Any]:
    """`create(name, **options)` without a registry: what is tested need not be installed."""

    def make(name: str, **options: Any) -> Any:
        spec = SPECS[name]
        config = build_config(resolve(spec.config), options, mechanism=spec.full_name)
        return resolve(spec.factory)(config, spec=spec)

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
