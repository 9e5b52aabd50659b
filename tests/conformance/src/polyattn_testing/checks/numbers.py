"""Outputs against the mechanism's reference in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn_core.arrays import merge_heads
from polyattn_core.errors import CapabilityError, ConfigError, PolyattnError
from polyattn_core.masks import Causal

from ..comparison import assert_close, assert_refused, assert_same, require
from ..sizes import AWKWARD, GROUPED, LEADING, PLAIN, leading
from ..subject import Example, Subject
from . import Check


def checks(subject: Subject) -> Iterator[Check]:
    """Those that fit the declared dtypes, heads, biases."""
    can = subject.capabilities
    for dtype in subject.dtypes:
        yield _in_dtype(dtype)
    yield check_leading_axes
    yield check_grouped_heads if can.grouped else check_grouped_heads_are_refused
    if not can.cross:
        yield check_other_numbers_of_keys_are_refused
    if not can.value_size:
        yield check_other_value_sizes_are_refused
    yield check_bias if can.bias else check_bias_is_refused
    yield check_causal_option if can.causal else check_causal_option_is_refused
    yield check_model_level
    yield check_single_query
    yield check_large_scores
    yield check_extremes_are_quiet


def _in_dtype(dtype: str) -> Check:
    def check(subject: Subject) -> None:
        """Agrees with the reference at awkward sizes; the output has the dtype of the inputs."""
        for sizes in AWKWARD:
            example = subject.example(sizes, dtype)
            _compare(example)

    check.__name__ = f"check_agrees_with_reference_in_{dtype}"
    return check


def _compare(example: Example) -> None:
    output = example.attend()
    what = f"{example.dtype} output for {example.sizes}"
    require(output.dtype == example.query.dtype, f"{what}: it is {output.dtype}")
    assert_close(output, example.expected(), example.tolerance, what)


def check_leading_axes(subject: Subject) -> None:
    """Leading axes: none, several, and some that broadcast against each other."""
    for sizes in LEADING:
        _compare(subject.example(sizes))


def check_grouped_heads(subject: Subject) -> None:
    """Query heads share key heads, neighbours the same one."""
    for sizes in GROUPED:
        _compare(subject.example(sizes))


def check_grouped_heads_are_refused(subject: Subject) -> None:
    """Fewer key heads than query heads are an error."""
    assert_refused(
        lambda: subject.create(dim=8, heads=4, kv_heads=2),
        "fewer key heads, which are not declared",
        (CapabilityError, ConfigError),
    )


def check_other_numbers_of_keys_are_refused(subject: Subject) -> None:
    """Another number of keys than of queries is an error."""
    example = subject.example()
    fewer = example.replace(key=example.key[..., :-1, :], value=example.value[..., :-1, :])
    assert_refused(fewer.attend, "fewer keys, which are not declared", CapabilityError)


def check_other_value_sizes_are_refused(subject: Subject) -> None:
    """Values of another head size are an error."""
    example = subject.example()
    wider = example.replace(value=np.concatenate((example.value, example.value), axis=-1))
    assert_refused(wider.attend, "wider values, which are not declared", PolyattnError, ("value",))


def check_bias(subject: Subject) -> None:
    """A bias is added to the scores, whatever axes it broadcasts along."""
    example = subject.example(leading(2, 1, queries=66, keys=65, heads=2, key_heads=1))
    full = ("lead", "heads", "queries", "keys")
    for axes in (full, full[1:], ("queries", "keys"), ("keys",), ("heads", "queries"), ()):
        bias = example.bias(*axes)
        expected = example.expected(bias=bias)
        what = f"output with a bias of shape {bias.shape} to {example.sizes}"
        assert_close(example.attend(bias=bias), expected, example.tolerance, what)
    flat = example.bias("keys").reshape(-1)
    assert_same(
        example.attend(bias=flat),
        example.attend(bias=example.bias("keys")),
        "output with a bias of one axis against that of the same bias with leading axes",
    )


def check_bias_is_refused(subject: Subject) -> None:
    """A bias is an error."""
    example = subject.example()
    error = assert_refused(
        lambda: example.attend(bias=example.bias("keys")),
        "a bias, which is not declared",
        CapabilityError,
    )
    _require_alternatives(error, "bias")


def _require_alternatives(error: PolyattnError, capability: str) -> None:
    from polyattn_core.resolver import alternatives

    known = alternatives(capability)
    named = getattr(error, "alternatives", ())
    require(bool(named) or not known, f"the error does not name one that can: {error}")


def check_causal_option(subject: Subject) -> None:
    """`causal=True` hides later keys; with more keys than queries the last query sees all."""
    for sizes in (PLAIN, leading(2, queries=65, keys=70), leading(1, queries=9, keys=6)):
        example = subject.example(sizes, causal=True)
        what = f"with causal=True for {example.sizes}"
        earlier = Causal().dense(example.shape)
        seen = example.visible()
        require(not (seen & ~earlier).any(), f"the mechanism's own mask shows later keys {what}")
        plain = example.replace(mechanism=subject.create(sizes, causal=False))
        if plain.own_mask() is None:
            # Where there is a pattern, it may be another one in its causal form.
            require((seen | ~earlier).all(), f"the mechanism's own mask hides more {what}")
        expected = example.expected()
        assert_close(example.attend(), expected, example.tolerance, f"output {what}")
        if "causal" in subject.capabilities.masks:
            output = example.attend(mask=Causal())
            assert_close(output, expected, example.tolerance, f"output {what} and mask=Causal()")


def check_causal_option_is_refused(subject: Subject) -> None:
    """`causal=True` is an error."""
    assert_refused(
        lambda: subject.create(causal=True),
        "causal=True, which is not declared",
        (CapabilityError, ConfigError),
        ("causal",),
    )


def check_model_level(subject: Subject) -> None:
    """A call with (…, tokens, dim) splits heads, attends and merges."""
    example = subject.example(leading(2, queries=6, keys=7, heads=4, key_heads=2))
    query, key, value = (merge_heads(array) for array in example.inputs.values())
    output = example.mechanism(query, key, value, **example.side)
    assert_same(output, merge_heads(example.attend()), "model-level output against head-level")

    alike = replace(example.sizes, keys=6, key_heads=4, value_size=example.sizes.size)
    example = subject.example(alike)
    query, key = merge_heads(example.query), merge_heads(example.key)
    if query.shape == key.shape:
        for what, given, defaulted in (
            ("key and value", (query, query, query), (query,)),
            ("value", (query, key, key), (query, key)),
        ):
            assert_same(
                example.mechanism(*defaulted, **example.side),
                example.mechanism(*given, **example.side),
                f"output with {what} left to their defaults",
            )


def check_single_query(subject: Subject) -> None:
    """A query (dim,) with keys (keys, dim) is the form of vector search."""
    if not subject.capabilities.cross:
        sizes = leading(queries=1, keys=1)
    else:
        sizes = leading(queries=1, keys=9)
    example = subject.example(sizes)
    query, key, value = (merge_heads(array) for array in example.inputs.values())
    output = example.mechanism(query[0], key, value, **example.side)
    expected = merge_heads(example.attend())[0]
    assert_same(output, expected, "output for a single query (dim,) against (1, dim)")


def check_large_scores(subject: Subject) -> None:
    """Scores of some hundreds do not overflow: their exponentials would, in float32."""
    dtype = "float32" if "float32" in subject.dtypes else subject.precise
    example = subject.example(dtype=dtype)
    large = example.replace(query=100 * example.query)
    # Rounding of the scores grows with them, and exponentials make it relative.
    tolerance = 100 * large.tolerance
    assert_close(large.attend(), large.expected(), tolerance, "output for queries 100 times larger")


def check_extremes_are_quiet(subject: Subject) -> None:
    """Infinite and very large numbers show in the output, or are refused; they warn of nothing."""
    # In single precision the squares of the large ones overflow.
    dtype = "float32" if "float32" in subject.dtypes else subject.precise
    example = subject.example(dtype=dtype)
    for extreme in (np.inf, 1e30):
        inputs = {name: array.copy() for name, array in example.inputs.items()}
        for array in inputs.values():
            array[..., -1, :] = extreme
        loud = example.replace(**inputs)
        with warnings.catch_warnings(), np.errstate(all="warn"):
            warnings.simplefilter("error")
            try:
                output = loud.attend()
                if subject.capabilities.gradient:
                    loud.vjp()[1](np.ones_like(output))
            except PolyattnError:
                pass  # points beyond the boundary of a space, say
            except Warning as warning:
                require(False, f"a warning where tokens are {extreme}: {warning}")
