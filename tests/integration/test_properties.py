"""Whatever is passed, a call gives a result or a typed error; what masks and merges must hold."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyattn_core import masks
from polyattn_core.arrays import named_dtype
from polyattn_core.errors import PolyattnError
from polyattn_core.masks import Mask, MaskShape
from polyattn_core.spec import DTYPES
from polyattn_registry import config_schema, create

MECHANISMS = ("flash", "sparsemax", "top-k", "sigmoid", "multi-head", "sliding-window")
"""One for each kernel, one with parameters, one with a mask of its own."""

patient = settings(
    deadline=None,  # the first call of each kernel compiles it
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# ---- anything at all --------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.floats(0, 10), st.booleans(), st.none()
)
junk = st.one_of(
    numbers,
    st.text(max_size=5),
    st.lists(numbers, max_size=3),
    st.dictionaries(st.text(max_size=5), numbers, max_size=2),
    st.sampled_from(
        [object(), b"bytes", ..., int, np.float16(1), np.array("text"), "alibi", "rope"]
    ),
)
dtypes = st.sampled_from(
    [*map(named_dtype, DTYPES), *map(np.dtype, ("i8", "u1", "?", "c16", "O", ">f8", "M8[s]"))]
)


def arrays_of(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> Any:
    """Filled with numbers that may be huge, infinite or not numbers."""
    rng = np.random.default_rng(seed)
    filled = rng.standard_normal(shape)
    if seed % 3 == 0 and filled.size:
        odd = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e38, 1e-320, 0.0], filled.shape)
        filled = np.where(rng.random(shape) < 0.2, odd, filled)
    with np.errstate(all="ignore"):
        return np.zeros(shape, dtype) if dtype.kind == "M" else filled.astype(dtype)


shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
arrays = st.builds(arrays_of, dtypes, shapes, st.integers(0, 99))
anything = st.one_of(junk, arrays)

# ---- calls that are nearly right ------------------------------------------------------------------


@st.composite
def masks_for_calls(draw: st.DrawFn) -> Any:
    """A mask that may or may not fit; also things that are none."""
    kind = draw(st.sampled_from(["junk", "boolean", *KINDS]))
    if kind == "junk":
        return draw(anything)
    if kind == "boolean":
        return draw(hnp.arrays(bool, shapes))
    shape = MaskShape((2,), 2, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    return draw(KINDS[kind](shape))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arrays that fit each other except for what was changed, and options of the call."""
    dtype = draw(st.sampled_from([named_dtype(name) for name in DTYPES]))
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    lead = draw(st.sampled_from([(), (1,), (2,), (2, 1), (0,)]))
    seed = draw(st.integers(0, 99))
    good = [
        arrays_of(dtype, (*lead, 2, tokens, 3), seed + i)
        for i, tokens in enumerate((queries, keys, keys))
    ]
    for _ in range(draw(st.integers(0, 2))):
        good[draw(st.integers(0, 2))] = draw(anything)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["mask"] = draw(masks_for_calls())
    if draw(st.booleans()):
        options["bias"] = draw(st.one_of(anything, hnp.arrays(dtype, shapes)))
    if draw(st.integers(0, 9)) == 0:
        options[draw(st.sampled_from(["maks", "training", "rng", "positions"]))] = draw(anything)
    return (*good, options)


def merged(array: Any) -> Any:
    """Head-level array as one at model level, where it is one at all."""
    fits = isinstance(array, np.ndarray) and array.ndim >= 3
    if not fits:
        return array
    moved = array.swapaxes(-3, -2)
    return moved.reshape((*moved.shape[:-2], moved.shape[-2] * moved.shape[-1]))


def result_or_error(action: Any) -> Any:
    """What an action returns; None where it raises a typed error. Any other error is raised."""
    try:
        with np.errstate(all="ignore"):
            return action()
    except PolyattnError as error:
        assert str(error)
        return None


@pytest.mark.parametrize("name", MECHANISMS)
@patient
@given(data=st.data())
def test_create_gives_a_mechanism_or_a_typed_error(name: str, data: st.DataObject) -> None:
    fields = list(config_schema(name)["properties"])
    names = st.one_of(st.sampled_from(fields), st.text(max_size=6))
    options = data.draw(st.dictionaries(names, anything, max_size=4))
    options.setdefault("dim", 6)
    mechanism = result_or_error(lambda: create(name, config=options))
    if mechanism is not None:
        assert type(mechanism.config).model_validate_json(mechanism.config.model_dump_json())


@patient
@given(name=st.one_of(st.text(), anything))
@example("flash@")
@example("a/b/c")
@example("\ud800")
def test_any_name_gives_a_mechanism_or_a_typed_error(name: Any) -> None:
    result_or_error(lambda: create(name, dim=4))


@pytest.mark.parametrize("name", MECHANISMS)
@patient
@given(call=calls(), incoming=st.one_of(st.none(), anything), start=anything, total=anything)
def test_any_call_gives_a_result_or_a_typed_error(
    name: str, call: tuple[Any, ...], incoming: Any, start: Any, total: Any
) -> None:
    *inputs, options = call
    mechanism = create(name, dim=6, heads=2)
    before = [array.copy() if isinstance(array, np.ndarray) else None for array in inputs]
    output = result_or_error(lambda: mechanism.attend(*inputs, **options))
    if output is not None:
        assert isinstance(output, np.ndarray)
        assert output.ndim >= 3
    result_or_error(lambda: mechanism(*map(merged, inputs), **options))
    result_or_error(lambda: mechanism.observe(*inputs, "weights", "entropy", **options))
    differentiated = result_or_error(lambda: mechanism.attend_vjp(*inputs, **options))
    if differentiated is not None:
        value, pullback = differentiated
        result_or_error(lambda: pullback(np.ones_like(value) if incoming is None else incoming))
    options.pop("bias", None)
    where = {"start": start, "total": total}
    result_or_error(lambda: mechanism.attend_partial(*inputs, **where, **options))
    for array, copy in zip(inputs, before, strict=True):
        if copy is not None:
            assert array.tobytes() == copy.tobytes()


@patient
@given(data=st.data())
def test_any_mask_is_made_or_refused(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([getattr(masks, name) for name in MASKS]))
    fields = list(make.__dataclass_fields__)
    arguments = [data.draw(anything) for _ in fields[: data.draw(st.integers(1, len(fields)))]]
    mask = result_or_error(lambda: make(*arguments))
    if mask is not None and make is not masks.Predicate:
        shape = MaskShape((2,), 2, 5, 4)
        dense = result_or_error(lambda: mask.dense(shape))
        if dense is not None:
            assert dense.shape == (2, 2, 5, 4)


MASKS = (
    "Blocks", "Causal", "Dense", "Dilated", "Documents", "GlobalTokens", "Padding", "Predicate",
    "Prefix", "Strided", "Window",
)  # fmt: skip

# ---- masks that fit ---------------------------------------------------------------------------

align = st.sampled_from(["lower_right", "upper_left"])
reach = st.one_of(st.none(), st.integers(0, 9), st.integers(0, 200))


def seen_by_thirds(batch: int, head: int, query: int, key: int) -> bool:
    return (query + 2 * key + head + batch) % 3 != 0


def seen_near_the_end(batch: int, head: int, query: int, key: int) -> bool:
    return key > 60 or query > 63


def random_booleans(shape: tuple[int, ...], seed: int, share: float) -> Any:
    return np.random.default_rng(seed).random(shape) < share


def booleans(*shape: int) -> st.SearchStrategy[Any]:
    seeds, share = st.integers(0, 1 << 20), st.sampled_from([0.03, 0.5, 0.97])
    return st.builds(random_booleans, st.just(shape), seeds, share)


def _lengths(shape: MaskShape) -> st.SearchStrategy[Any]:
    one = st.integers(0, shape.keys + 3)
    return st.one_of(one, hnp.arrays(np.int64, shape.lead, elements=one))


def _documents(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def ids(tokens: int) -> st.SearchStrategy[Any]:
        sizes = st.sampled_from([(tokens,), (*shape.lead, tokens)])
        # A few runs, as sequences have, or anything.
        few = st.integers(0, 3)
        return sizes.flatmap(lambda s: hnp.arrays(np.int64, s, elements=few, fill=few))

    return st.builds(masks.Documents, ids(shape.queries), ids(shape.keys))


def _blocks(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def layout(size: int) -> st.SearchStrategy[Mask]:
        blocks = (-(-shape.queries // size), -(-shape.keys // size))
        layouts = st.one_of(booleans(*blocks), booleans(*shape.lead, shape.heads, *blocks))
        return st.builds(masks.Blocks, layouts, st.just(size))

    return st.sampled_from([1, 3, 16, 64, 100]).flatmap(layout)


def _dense(shape: MaskShape) -> st.SearchStrategy[Mask]:
    queries, keys = shape.queries, shape.keys
    return st.one_of(
        *(
            st.builds(masks.Dense, booleans(*size))
            for size in (
                (queries, keys),
                (1, keys),
                (queries, 1),
                (shape.heads, queries, keys),
                (*shape.lead, 1, 1, keys),
                (*shape.lead, shape.heads, queries, keys),
            )
        )
    )


def _positions(shape: MaskShape) -> st.SearchStrategy[Any]:
    one = st.integers(-shape.keys, shape.keys - 1)
    return st.one_of(st.integers(0, shape.keys + 2), st.lists(one, max_size=3).map(tuple))


def _strided(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def of_stride(stride: int) -> st.SearchStrategy[Mask]:
        patterns, summary = st.sampled_from(["strided", "fixed"]), st.integers(1, stride)
        return st.builds(masks.Strided, st.just(stride), patterns, summary, align)

    return st.integers(1, 70).flatmap(of_stride)


KINDS = {
    "causal": lambda shape: st.builds(masks.Causal, align, st.integers(-150, 150)),
    "window": lambda shape: st.builds(masks.Window, reach, reach, align),
    "padding": lambda shape: st.builds(masks.Padding, _lengths(shape)),
    "prefix": lambda shape: st.builds(masks.Prefix, _lengths(shape)),
    "documents": _documents,
    "global": lambda shape: st.builds(masks.GlobalTokens, _positions(shape), align),
    "dilated": lambda shape: st.builds(masks.Dilated, st.integers(1, 70), reach, reach, align),
    "strided": _strided,
    "blocks": _blocks,
    "dense": _dense,
    "predicate": lambda shape: st.sampled_from(
        [masks.Predicate(seen_by_thirds), masks.Predicate(seen_near_the_end)]
    ),
}


def expressions(shape: MaskShape) -> st.SearchStrategy[Mask]:
    """Any combination of masks that fit."""
    leaves = st.one_of(*(make(shape) for make in KINDS.values()))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=6,
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

    # Unit vectors as values give the forward kernel's weights, as incoming gradients the backward's.
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
        for a, b in zip(places, places[1:], strict=False)
    ]
    order.shuffle(parts)
    output = reduce(lambda first, second: first.merge(second), parts).finish()
    expected = mechanism.attend(query, key, value, mask=mask)
    np.testing.assert_allclose(output, expected, rtol=1e-10, atol=1e-10)
