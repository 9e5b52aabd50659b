"""Bad input: typed errors that name the argument and say what is accepted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from polyattn_core.arrays import merge_heads, named_dtype
from polyattn_core.errors import (
    ArgumentError,
    CapabilityError,
    ConfigError,
    DTypeError,
    MaskError,
    MissingInputError,
    PolyattnError,
    ShapeError,
)
from polyattn_core.spec import DTYPES, resolve

from ..comparison import assert_refused, require
from ..sizes import leading
from ..subject import Example, Subject
from . import Check

_OUTSIDE = {
    "minimum": -1,
    "exclusiveMinimum": 0,
    "maximum": 1,
    "exclusiveMaximum": 0,
}
"""Bound of JSON schema → what to add to it to be just outside."""


def checks(subject: Subject) -> Iterator[Check]:
    """Those that fit what the mechanism takes."""
    can = subject.capabilities
    yield check_unknown_option
    yield check_options_out_of_range
    yield check_heads_that_do_not_divide
    yield check_wrong_ranks
    yield check_sizes_that_do_not_fit
    yield check_wrong_dtypes
    yield check_empty_arrays
    if can.masks:
        yield check_masks_that_do_not_fit
    if can.bias:
        yield check_bias_that_does_not_fit
    yield check_unknown_argument
    if any(side.required for side in can.side_inputs):
        yield check_missing_side_inputs
    if set(can.dtypes) != set(DTYPES):
        yield check_undeclared_dtypes_are_refused


def _refused(
    example: Example, what: str, kinds: Any, mentions: tuple[str, ...], **changes: Any
) -> None:
    """A call with changed inputs is refused, and so is its differentiated form."""
    changed = example.replace(**changes)
    assert_refused(changed.attend, what, kinds, mentions)
    if example.subject.capabilities.gradient:
        assert_refused(changed.vjp, f"{what}, in vjp", kinds, mentions)


def check_unknown_option(subject: Subject) -> None:
    """An option that does not exist; where a name is near, it is suggested."""
    error = assert_refused(
        lambda: subject.create(headz=2), "the option headz", ConfigError, ("headz", "heads")
    )
    require("did you mean" in str(error), f"no suggestion for the option headz: {error}")


def check_options_out_of_range(subject: Subject) -> None:
    """Numbers just outside of their bounds, NaN, and values of another type."""
    properties = resolve(subject.spec.config).model_json_schema()["properties"]
    for name, definition in properties.items():
        variants = definition.get("anyOf", [definition])
        kinds = {variant.get("type") for variant in variants}
        for variant in variants:
            for bound, beyond in _OUTSIDE.items():
                if bound in variant:
                    _option_refused(subject, name, variant[bound] + beyond)
        if "number" in kinds:
            _option_refused(subject, name, float("nan"))
        if "string" not in kinds:
            _option_refused(subject, name, "no such value")
        _option_refused(subject, name, object())


def _option_refused(subject: Subject, name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    assert_refused(
        partial(subject.create, **options),
        f"the option {name}={value!r}",
        ConfigError,
        (name,),
    )


def check_heads_that_do_not_divide(subject: Subject) -> None:
    """A width that does not split into the heads."""
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"dim": 10, "heads": 3, "kv_heads": None}, "heads"),
        ({"dim": 12, "heads": 4, "kv_heads": 3}, "kv_heads"),
    )
    for options, argument in wrong:
        what = f"the options {options}"
        assert_refused(partial(subject.create, **options), what, ConfigError, (argument,))


def check_wrong_ranks(subject: Subject) -> None:
    """Arrays with too few axes, numbers, nested lists that are no rectangle."""
    example = subject.example(leading(queries=3, keys=4))
    for name, array in example.inputs.items():
        for wrong in (array[0], array[0, 0], array[0, 0, 0], 1.0):
            what = f"{name} of shape {np.shape(wrong)} at head level"
            _refused(example, what, PolyattnError, (name,), **{name: wrong})
        ragged = [[1.0, 2.0], [3.0]]
        _refused(example, f"a ragged {name}", ShapeError, (name,), **{name: ragged})
    query, key, value = (merge_heads(array) for array in example.inputs.values())
    for name, inputs in (
        ("key", (query, key[0], value)),
        ("value", (query, key, value[0])),
        ("query", (query[0, 0], key, value)),
    ):
        what = f"{name} with an axis too few at model level"
        assert_refused(
            partial(example.mechanism, *inputs, **example.side),
            what,
            ShapeError,
            (name,),
        )


def check_sizes_that_do_not_fit(subject: Subject) -> None:
    """Sizes of query, key and value that contradict each other or the options."""
    example = subject.example(leading(2, queries=5, keys=5, heads=2, key_heads=2, size=4))
    query, key, value = example.query, example.key, example.value
    three = np.concatenate((query, query, query))[:3]
    for what, name, changes in (
        ("a query of another head size", "query", {"query": query[..., :-1]}),
        ("a key of another head size", "key", {"key": key[..., :-1]}),
        ("one key more than values", "value", {"value": value[..., :-1, :]}),
        ("a key with a head too many", "key", {"key": np.concatenate((key, key[:, :1]), axis=1)}),
        ("a value with other heads", "value", {"value": np.concatenate((value, value), axis=1)}),
        ("a query with other heads", "query", {"query": np.concatenate((query, query), axis=1)}),
        ("leading axes of 3 and 2", "query", {"query": three}),
    ):
        _refused(example, what, ShapeError, (name,), **changes)
    merged = merge_heads(query)[..., :-1]
    what = "a query of another width at model level"
    assert_refused(
        lambda: example.mechanism(merged, **example.side), what, ShapeError, ("query", "dim")
    )


def check_wrong_dtypes(subject: Subject) -> None:
    """Integers, complex numbers, objects, text, booleans; and dtypes that differ."""
    example = subject.example()
    for dtype in (np.int64, np.uint8, np.complex128, object, "U3", bool, "M8[s]"):
        for name, array in example.inputs.items():
            wrong = np.zeros(array.shape, dtype)
            what = f"{name} of dtype {wrong.dtype}"
            _refused(example, what, DTypeError, (name, "float32"), **{name: wrong})
    if len(subject.dtypes) > 1:
        other = named_dtype(subject.dtypes[1])
        for name, array in example.inputs.items():
            what = f"{name} of dtype {other} among {example.dtype}"
            _refused(example, what, DTypeError, (name,), **{name: array.astype(other)})


def check_empty_arrays(subject: Subject) -> None:
    """An axis of length 0."""
    example = subject.example(leading(2, queries=5, keys=5))
    parts: dict[str, Any] = {"batch": np.s_[:0], "tokens": np.s_[..., :0, :]}
    for axis, part in parts.items():
        for names in (("query", "key", "value"), ("key", "value"), ("query",)):
            changes = {name: example.inputs[name][part] for name in names}
            what = f"{' and '.join(names)} with 0 {axis}"
            _refused(example, what, PolyattnError, (), **changes)
    for name, array in example.inputs.items():
        for empty in (array[..., :0], array[:, :0]):
            what = f"{name} of shape {empty.shape}"
            _refused(example, what, ShapeError, (name,), **{name: empty})


def check_masks_that_do_not_fit(subject: Subject) -> None:
    """Masks that do not broadcast, and things that are no mask."""
    example = subject.example(leading(2, queries=5, keys=5))
    calls = {
        "numbers as a mask": np.zeros((5, 5)),
        "text as a mask": "causal",
        "a list as a mask": [[True] * 5] * 5,
        "a number as a mask": 1,
    }
    if "dense" in subject.capabilities.masks:
        shape = example.shape
        heads, queries, keys = shape.heads, shape.queries, shape.keys
        calls["a mask for a key too few"] = np.ones((queries, keys - 1), bool)
        calls["a mask for a head too many"] = np.ones((heads + 1, queries, keys), bool)
        calls["a mask for 3 of 2 batch elements"] = np.ones((3, 1, queries, keys), bool)
        calls["a mask with one axis"] = np.ones(keys, bool)
    for what, mask in calls.items():
        _mask_refused(example, what, mask)
    from polyattn_core import masks

    if "padding" in subject.capabilities.masks:
        _mask_refused(example, "lengths of 3 batch elements", masks.Padding([1, 2, 3]))
    if "documents" in subject.capabilities.masks:
        _mask_refused(example, "documents of 3 tokens", masks.Documents([1, 2, 3]))


def _mask_refused(example: Example, what: str, mask: Any) -> None:
    error = assert_refused(lambda: example.attend(mask=mask), what, MaskError)
    require("expected" in str(error), f"{what}: the error does not say what is accepted: {error}")


def check_bias_that_does_not_fit(subject: Subject) -> None:
    """A bias that does not broadcast, or is not of numbers."""
    example = subject.example(leading(2, queries=5, keys=5))
    heads = example.shape.heads
    for shape in ((5, 4), (4, 5), (heads + 1, 5, 5), (3, 1, 1, 1), (1, 2, 1, 1, 1), (0, 5)):
        bias = np.zeros(shape, example.query.dtype)
        what = f"a bias of shape {shape}"
        assert_refused(partial(example.attend, bias=bias), what, ShapeError, ("bias",))
    for dtype in (bool, np.int32, complex):
        bias = np.zeros((5, 5), dtype)
        what = f"a bias of dtype {bias.dtype}"
        assert_refused(partial(example.attend, bias=bias), what, DTypeError, ("bias",))


def check_unknown_argument(subject: Subject) -> None:
    """A keyword that the call does not take."""
    example = subject.example()
    what = "an unknown keyword"
    for call in (example.attend, example.observe):
        assert_refused(partial(call, maks=None), what, PolyattnError, ("maks", "mask"))


def check_missing_side_inputs(subject: Subject) -> None:
    """A required side input that is not passed: the error says what to pass."""
    example = subject.example()
    for side in subject.capabilities.side_inputs:
        if side.required:
            others = {name: value for name, value in example.side.items() if name != side.name}
            what = f"a call without {side.name}"
            _refused(example, what, MissingInputError, (side.name,), side=others)


def check_undeclared_dtypes_are_refused(subject: Subject) -> None:
    """A dtype that is not declared."""
    example = subject.example()
    for dtype in DTYPES:
        if dtype not in subject.capabilities.dtypes:
            kind = named_dtype(dtype)
            changes = {name: array.astype(kind) for name, array in example.inputs.items()}
            what = f"inputs of dtype {dtype}, which is not declared"
            _refused(example, what, (CapabilityError, ArgumentError), (dtype,), **changes)
