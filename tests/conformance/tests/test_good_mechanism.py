"""A mechanism that does all that it should passes."""

from __future__ import annotations

import pytest

from polyattn_core.spec import ConformanceCase
from polyattn_registry import Registry
from polyattn_testing import assert_conforms, check_mechanism


@pytest.mark.parametrize("index", [0, 1, 2], ids=["learned", "not learned", "with a side input"])
def test_good_mechanism_passes(registry: Registry, index: int) -> None:
    import acme_plain

    spec = acme_plain.GOOD[index]
    registry.register(spec)
    inputs = "acme_plain:gates" if spec.capabilities.side_inputs else ""
    cases = [ConformanceCase(mechanism=spec.full_name, inputs=inputs)]
    results = check_mechanism(spec.full_name, cases=cases, registry=registry)
    assert [str(result) for result in results if not result.ok] == []
    assert sum(result.status == "passed" for result in results) > 60
    assert_conforms(spec.full_name, checks="check_bias", cases=cases, registry=registry)
