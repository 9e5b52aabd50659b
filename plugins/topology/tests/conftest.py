"""Mechanisms of this family; the registry gives the gate what it gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn_registry


@pytest.fixture(scope="session")
def create() -> Callable[..., Any]:
    return lambda name, **options: polyattn_registry.create(f"topology/{name}", **options)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
