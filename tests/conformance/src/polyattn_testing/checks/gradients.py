"""Gradients against central finite differences along random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polyattn_core.arrays import merge_heads
from polyattn_core.errors import CapabilityError, ShapeError
from polyattn_core.masks import Mask

from ..comparison import NotApplicable, assert_close, assert_refused, require
from ..mask_examples import masks_of, masks_with_empty_rows
from ..sizes import GROUPED, LEADING, PLAIN, leading
from ..subject import STEP, Array, Example, Subject
from . import Check


def checks(subject: Subject) -> Iterator[Check]:
    """Those that fit; where there are no gradients, that asking for them is an error."""
    can = subject.capabilities
    if not can.gradient:
        yield check_gradients_are_refused
        return
    yield check_gradients_by_inputs
    if can.masks:
        yield check_gradients_under_masks
    if can.bias:
        yield check_gradient_by_bias
    yield check_gradients_by_parameters
    yield check_gradients_of_defaulted_inputs
    yield check_gradients_in_every_dtype
    yield check_pullback


def check_gradients_are_refused(subject: Subject) -> None:
    """Asking for gradients is an error."""
    example = subject.example()
    assert_refused(example.vjp, "gradients, which are not declared", CapabilityError)


def slope(
    function: Callable[[Array], Array], at: Array, along: Array, incoming: Array, step: float
) -> float:
    """Derivative of ⟨function(x), incoming⟩ at `at` in the direction `along`, by differences."""
    ahead, behind = (at + step * along).astype(at.dtype), (at - step * along).astype(at.dtype)
    difference = np.asarray(function(ahead), np.float64) - np.asarray(function(behind), np.float64)
    return float((difference * incoming).sum() / (2 * step))


def _assert_slope(
    subject: Subject, gradient: Array | None, at: Array, incoming: Array,
    function: Callable[[Array], Array], what: str, seed: int = 0,
) -> None:  # fmt: skip
    require(gradient is not None, f"{what}: there is none")
    assert gradient is not None
    require(gradient.shape == at.shape, f"{what}: shape {gradient.shape}, expected {at.shape}")
    require(gradient.dtype == at.dtype, f"{what}: dtype {gradient.dtype}, expected {at.dtype}")
    along = np.random.default_rng(seed).standard_normal(at.shape)
    expected = slope(function, at, along, incoming, STEP[str(at.dtype)])
    found = float((gradient.astype(np.float64) * along).sum())
    tolerance = subject.gradient_tolerance
    if at.dtype != subject.precise:
        tolerance = max(tolerance, 1e-3)
    assert_close(found, expected, tolerance, f"{what}, along a random direction")


def _check_inputs(example: Example, **options: Any) -> None:
    """Query, key, value and side inputs."""
    incoming = example.direction()
    output, pullback = example.vjp(**options)
    label = f"for {example.sizes}" + (f" under {options['mask']!r}" if "mask" in options else "")
    what = f"output of the differentiated call {label}"
    assert_close(output, example.attend(**options), example.tolerance, what)
    found = pullback(incoming)
    for name in ("query", "key", "value"):

        def varied(array: Array, name: str = name) -> Array:
            return example.replace(**{name: array}).attend(**options)

        at = example.inputs[name]
        gradient = getattr(found, name)
        what = f"gradient by {name} {label}"
        _assert_slope(example.subject, gradient, at, incoming, varied, what)
    for name, gradient in found.side.items():

        def varied_side(array: Array, name: str = name) -> Array:
            return example.replace(side={**example.side, name: array}).attend(**options)

        at = np.asarray(example.side[name])
        what = f"gradient by {name} {label}"
        _assert_slope(example.subject, gradient, at, incoming, varied_side, what)


def check_gradients_by_inputs(subject: Subject) -> None:
    """By query, key and value, at several sizes, with grouped heads and broadcast leading axes."""
    sizes = [PLAIN, leading(1, queries=66, keys=65, size=5, value_size=9), *LEADING[4:]]
    sizes.append(leading(queries=1, keys=1, size=1, value_size=1, heads=1, key_heads=1))
    if subject.capabilities.grouped:
        sizes += GROUPED
    for each in sizes:
        _check_inputs(subject.example(each))


def check_gradients_under_masks(subject: Subject) -> None:
    """Under each declared kind of mask, and where some rows see nothing."""
    kinds = subject.capabilities.masks
    example = subject.example(leading(2, queries=6, keys=7))
    masks: list[Mask] = [masks_of(kind, example.shape)[-1] for kind in kinds]
    for mask in masks + masks_with_empty_rows(kinds, example.shape)[:2]:
        _check_inputs(example, mask=mask)
    if subject.capabilities.causal:
        _check_inputs(subject.example(leading(1, queries=66, keys=70), causal=True))


def check_gradient_by_bias(subject: Subject) -> None:
    """By the bias, summed along the axes that it broadcasts along."""
    example = subject.example(leading(2, 1, queries=6, keys=7, key_heads=1))
    incoming = example.direction()
    full = ("lead", "heads", "queries", "keys")
    for axes in (full, full[1:], ("heads", "keys"), ("queries",), ()):
        bias = example.bias(*axes)
        gradient = example.gradients(incoming, bias=bias).bias
        what = f"gradient by a bias of shape {bias.shape} to {example.sizes}"

        def varied(array: Array) -> Array:
            return example.attend(bias=array)

        _assert_slope(subject, gradient, bias, incoming, varied, what)
    require(example.gradients(incoming).bias is None, "a gradient by bias where there is no bias")


def check_gradients_by_parameters(subject: Subject) -> None:
    """By every learned array, through a call at model level."""
    example = subject.example(leading(2, queries=6, keys=7))
    mechanism = example.mechanism
    if not mechanism.parameters:
        raise NotApplicable("there are no learned arrays in this case")
    inputs = [merge_heads(array) for array in example.inputs.values()]
    output, pullback = mechanism.vjp(*inputs, **example.side)
    incoming = np.random.default_rng(2).standard_normal(output.shape).astype(output.dtype)
    found = pullback(incoming).parameters
    missing = set(mechanism.parameters) ^ set(found)
    require(not missing, f"gradients by {', '.join(sorted(missing))} are missing or surplus")
    for name, array in mechanism.parameters.items():
        at = np.array(array, np.float64)

        def varied(values: Array, name: str = name) -> Array:
            mechanism.parameters.update({name: values}, partial=True)
            result: Array = mechanism(*inputs, **example.side)
            return result

        require(found[name].shape == at.shape, f"gradient by {name}: shape {found[name].shape}")
        along = np.random.default_rng(3).standard_normal(at.shape)
        # What the array cannot hold is not moved by: the step follows its precision.
        step = STEP["float64"] if array.dtype == np.float64 else 2.0**-10
        expected = slope(varied, at, along, incoming, step)
        mechanism.parameters.update({name: at}, partial=True)
        gradient = float((found[name].astype(np.float64) * along).sum())
        tolerance = subject.gradient_tolerance if array.dtype == np.float64 else 1e-3
        assert_close(gradient, expected, tolerance, f"gradient by {name}, along a direction")


def check_gradients_of_defaulted_inputs(subject: Subject) -> None:
    """Where keys or values default to another input, its gradient holds theirs too."""
    sizes = replace(PLAIN, keys=PLAIN.queries, value_size=PLAIN.size)
    example = subject.example(sizes)
    query, key = merge_heads(example.query), merge_heads(example.key)
    if query.shape != key.shape:
        raise NotApplicable("the options of the case make queries and keys differ in width")
    side, mechanism = example.side, example.mechanism
    output, pullback = mechanism.vjp(query, **side)
    incoming = np.random.default_rng(2).standard_normal(output.shape).astype(output.dtype)
    own = pullback(incoming).query
    what = "gradient by the query of self-attention"
    _assert_slope(subject, own, query, incoming, lambda x: mechanism(x, **side), what)
    _, pullback = mechanism.vjp(query, key, **side)
    shared = pullback(incoming).key
    what = "gradient by a key that is the value too"
    _assert_slope(subject, shared, key, incoming, lambda x: mechanism(query, x, **side), what)


def check_gradients_in_every_dtype(subject: Subject) -> None:
    """Gradients have the dtype of their inputs, and agree with those in the most precise one."""
    for dtype in subject.dtypes[1:]:
        example = subject.example(leading(2, queries=65, keys=70, size=8), dtype)
        precise = np.dtype(subject.precise)
        inputs = {name: array.astype(precise) for name, array in example.inputs.items()}
        incoming = example.direction()
        found = example.gradients(incoming)
        expected = example.replace(**inputs).gradients(incoming.astype(precise))
        for name in ("query", "key", "value"):
            gradient, wanted = getattr(found, name), getattr(expected, name)
            what = f"{dtype} gradient by {name} for {example.sizes}"
            require(gradient.dtype == example.query.dtype, f"{what}: it is {gradient.dtype}")
            assert_close(gradient, wanted, 2 * subject.tolerance(dtype), what)


def check_pullback(subject: Subject) -> None:
    """It may be called again, is linear, and refuses gradients of another shape."""
    example = subject.example()
    output, pullback = example.vjp()
    incoming = example.direction()
    first, second = pullback(incoming), pullback(2 * incoming)
    for name in ("query", "key", "value"):
        twice, once = getattr(second, name), getattr(first, name)
        what = f"gradient by {name} of twice the incoming gradient"
        assert_close(twice, 2 * once, 10 * example.tolerance, what)
    for wrong in (incoming[..., :-1, :], incoming[..., None], incoming[0]):
        accepted = (str(output.shape),)
        what = f"an incoming gradient of shape {wrong.shape}"
        assert_refused(partial(pullback, wrong), what, ShapeError, accepted)
