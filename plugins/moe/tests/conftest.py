"""Mechanisms of this family without the registry; their experts come from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import polyattn_registry  # noqa: F401  which lets mixtures find their experts
from polyattn_core.config import build_config
from polyattn_core.spec import resolve
from polyattn_moe.plugin import MECHANISMS

SPECS = {spec.name: spec for spec in MECHANISMS}


@pytest.fixture(scope="session")
def create() -> Callable[..., Any]:
    """`create(name, **options)`: what is tested need not be installed."""

    def make(name: str, **options: Any) -> Any:
        spec = SPECS[name]
        config = build_config(resolve(spec.config), options, mechanism=spec.full_name)
        return resolve(spec.factory)(config, spec=spec)

    return make
