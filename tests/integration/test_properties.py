"""Whatever is passed, a call gives a result or a typed error, and the process lives on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mask_strategies import KINDS
from polyattn_core import masks
from polyattn_core.arrays import named_dtype
from polyattn_core.errors import PolyattnError
from polyattn_core.masks import MaskShape
from polyattn_core.spec import DTYPES
from polyattn_registry import config_schema, create

MECHANISMS = ("flash", "sparsemax", "top-k", "sigmoid", "multi-head", "sliding-window")
"""One for each kernel, one with parameters, one with a mask of its own."""

patient = settings(
    deadline=None,  # the first call of each kernel compiles it
    max_examples=120,
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
seeds = st.integers(0, 99)
arrays = st.builds(arrays_of, dtypes, shapes, seeds)
anything = st.one_of(junk, arrays)

# ---- calls that are nearly right ----------------------------------------------------------------


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
    seed = draw(seeds)
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
        options["bias"] = draw(
            st.one_of(anything, st.builds(arrays_of, st.just(dtype), shapes, seeds))
        )
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
        # Its message is made when it is asked for, of whatever was passed.
        str(error)
        return None


places = anything.filter(lambda n: not isinstance(n, int) or not 1 << 20 < n < 1 << 40)
"""Not between: masks of tokens that are counted from the end need memory for every position."""


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
@given(call=calls(), incoming=st.one_of(st.none(), anything), start=places, total=places)
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
    fields = [field for field in dataclasses.fields(make) if field.init and not field.kw_only]
    required = [field for field in fields if field.default is dataclasses.MISSING]
    count = data.draw(st.integers(len(required), len(fields)))
    arguments = [data.draw(anything) for _ in range(count)]
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
