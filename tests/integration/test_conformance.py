"""Every mechanism of this repository passes the conformance kit, and so do its position axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from polyattn_core.spec import ConformanceCase
from polyattn_testing import check_mechanism, conformance_tests
from workspace import FAMILIES


@conformance_tests(*(str(distribution.family) for distribution in FAMILIES))
def test_conformance(check: Callable[[], None]) -> None:
    check()


# Rotations need an even head size.
AXES: Mapping[str, Mapping[str, Any]] = {
    "rope": {"position": "rope", "dim": 16, "heads": 2},
    "part of rope, interleaved": {
        "position": {"kind": "rope", "interleaved": True, "size": 2, "base": 100.0, "factor": 2.0},
        "dim": 8,
        "heads": 2,
    },
    "alibi": {"position": "alibi", "heads": 3},
    "t5": {"position": {"kind": "t5", "buckets": 8, "max_distance": 40}},
    "softcap": {"softcap": 1.5, "causal": True},
}
NOT_WITH_T5 = {
    # It takes the place of a bias, as the error says.
    "check_bias",
    "check_cached_attention_with_a_bias",
    "check_gradient_by_bias",
    "check_inputs_are_not_written",
    "check_log_sum_exp_follows_the_bias",
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    "name", ["scaled-dot-product", "softmax-one", "cosine", "l2", "sparsemax", "sigmoid"]
)
def test_axes_combine_with_every_rule(name: str, axis: str) -> None:
    """With every kernel, and with rules that transform vectors or have a sink."""
    case = ConformanceCase(mechanism=name, name=axis, options=AXES[axis])
    results = check_mechanism(name, cases=[case])
    failed = {result.check: str(result) for result in results if not result.ok}
    expected = NOT_WITH_T5 & {result.check for result in results} if axis == "t5" else set()
    assert set(failed) == expected, "\n".join(failed.values())
