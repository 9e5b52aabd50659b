"""What holds for every mask: kernels see what it says, and parts of the keys merge."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask_strategies import expressions
from polyattn_core.masks import Mask, MaskShape
from polyattn_registry import create

patient = settings(
    deadline=None,  # the first call of each kernel compiles it
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)


@st.composite
def masked_shapes(draw: st.DrawFn) -> tuple[MaskShape, Mask]:
    tokens = st.one_of(st.integers(1, 8), st.sampled_from([63, 64, 65, 127, 130]))
    lead = draw(st.sampled_from([(), (2,), (2, 1)]))
    shape = MaskShape(lead, 2, draw(tokens), draw(tokens))
    return shape, draw(expressions(shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["flash", "sigmoid", "sparsemax", "top-k"])
@patient
@given(masked=masked_shapes())
def test_kernels_see_what_the_mask_says(
    name: str, dtype: str, masked: tuple[MaskShape, Mask]
) -> None:
    """With queries of 0 all visible keys have the same weight, in every rule: who has any?"""
    shape, mask = masked
    lead, heads, queries, keys = shape.lead, shape.heads, shape.queries, shape.keys
    expected = mask.dense(shape).reshape((*lead, heads, queries, keys))
    mechanism = create(name, dim=heads, heads=heads)
    query = np.zeros((*lead, heads, queries, 1), dtype)
    key = np.ones((*lead, heads, keys, 1), dtype)

    # Unit vectors as values show the forward kernel's weights, as gradients the backward's.
    units = np.broadcast_to(np.eye(keys, dtype=dtype), (*lead, heads, keys, keys))
    np.testing.assert_array_equal(mechanism.attend(query, key, units, mask=mask) > 0, expected)
    seen = mechanism.observe(query, key, key, "weights", mask=mask)
    np.testing.assert_array_equal(seen.weights > 0, expected)
    values = np.ones((*lead, heads, keys, queries), dtype)
    incoming = np.broadcast_to(np.eye(queries, dtype=dtype), (*lead, heads, queries, queries))
    _, pullback = mechanism.attend_vjp(query, key, values, mask=mask)
    found = pullback(incoming).value
    np.testing.assert_array_equal(found.swapaxes(-1, -2) > 0, expected)


@patient
@given(
    masked=masked_shapes(),
    cuts=st.lists(st.integers(1, 129), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_parts_merge_in_any_order(
    masked: tuple[MaskShape, Mask], cuts: list[int], order: Any
) -> None:
    shape, mask = masked
    rng = np.random.default_rng(shape.queries)
    query, key, value = (
        rng.standard_normal((*shape.lead, shape.heads, tokens, size))
        for tokens, size in ((shape.queries, 3), (shape.keys, 3), (shape.keys, 2))
    )
    mechanism = create("flash", dim=6, heads=2)
    places = sorted({0, shape.keys, *(cut for cut in cuts if cut < shape.keys)})
    parts = [
        mechanism.attend_partial(
            query, key[..., a:b, :], value[..., a:b, :], start=a, total=shape.keys, mask=mask
        )
        for a, b in pairwise(places)
    ]
    order.shuffle(parts)
    output = reduce(lambda first, second: first.merge(second), parts).finish()
    expected = mechanism.attend(query, key, value, mask=mask)
    np.testing.assert_allclose(output, expected, rtol=1e-10, atol=1e-10)
