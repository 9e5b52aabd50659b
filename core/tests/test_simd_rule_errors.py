"""Score rules that are refused, and what is said about them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.errors import KernelError
from polyattn_core.simd.rule_encoding import encode_rules
from polyattn_core.simd.rules import score_rule, squared_norm

TWO = np.float32(2)


@score_rule
def capped(score, cap, slope, query, key):  # type: ignore[no-untyped-def]
    """Any rule with parameters and positions."""
    return min(score, cap) + slope * np.float32(key - query)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(KernelError) as caught:
        make()
    return str(caught.value)


def test_rules_that_are_no_functions() -> None:
    for thing in (max, 3, functools.partial(capped.function, 1)):
        assert refused(lambda thing=thing: score_rule(thing)).endswith(
            "must be a function written in Python"
        )
    assert refused(lambda: score_rule(lambda: 1)) == (
        "the score rule <lambda> takes no argument for the score"
    )


def test_statistics_and_arguments_go_together() -> None:
    def plain(score): ...  # type: ignore[no-untyped-def]
    def with_row(score, row): ...  # type: ignore[no-untyped-def]

    assert refused(lambda: score_rule(row=squared_norm)(plain)) == (
        "the score rule plain takes ['score']; an argument 'row' and a statistic row= go together"
    )
    assert "an argument 'row' and a statistic row= go together" in refused(
        lambda: score_rule(with_row)
    )


def test_a_rule_that_does_not_compile_says_where_and_why() -> None:
    @score_rule
    def nonsense(score):  # type: ignore[no-untyped-def]
        return score.upper()

    text = refused(lambda: nonsense.address("float32", backward=False))
    line = nonsense.function.__code__.co_firstlineno
    assert text.startswith(f"the score rule nonsense ({__file__}:{line}) cannot be compiled: ")
    assert "upper" in text


def test_a_result_that_is_no_number() -> None:
    @score_rule
    def worded(score):  # type: ignore[no-untyped-def]
        return "high"

    assert "the score rule worded (" in refused(lambda: worded.address("float64", False))


def test_derivatives_take_what_the_rule_takes() -> None:
    @score_rule
    def linear(score, slope):  # type: ignore[no-untyped-def]
        return score * slope

    def swapped(slope, score): ...  # type: ignore[no-untyped-def]

    assert refused(lambda: linear.derivative(swapped)) == (
        "the derivative of linear takes ('slope', 'score'); it must take ('score', 'slope')"
    )


def returns_too_few(score, slope):  # type: ignore[no-untyped-def]
    return (slope,)


def returns_too_many(score, slope):  # type: ignore[no-untyped-def]
    return (slope, score, score)


def returns_a_number(score, slope):  # type: ignore[no-untyped-def]
    return slope


@pytest.mark.parametrize("wrong", [returns_too_few, returns_too_many, returns_a_number])
def test_another_number_of_partial_derivatives(wrong: Any) -> None:
    @score_rule
    def linear(score, slope):  # type: ignore[no-untyped-def]
        return score * slope

    linear.derivative(wrong)
    text = refused(lambda: linear.address("float32", backward=True))
    assert text.startswith(f"the score rule linear ({__file__}:")
    assert linear.address("float32", backward=False)


def test_a_single_partial_derivative_is_a_tuple_of_one() -> None:
    @score_rule
    def doubled(score):  # type: ignore[no-untyped-def]
        return TWO * score

    @doubled.derivative
    def doubled_derivative(score):  # type: ignore[no-untyped-def]
        return (TWO,)

    assert doubled.address("float32", backward=True)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ((1.0,), "the score rule capped takes the parameters cap, slope; it was given 1 values"),
        ((1.0, 2.0, 3.0), "the score rule capped takes the parameters cap, slope; it was given 3 "),
        (
            ([1.0, 2.0, 3.0], 1.0),
            "cap of the score rule capped has shape (3,); it is a number, or ",
        ),
        ((1.0, [[1.0]]), "slope of the score rule capped has shape (1, 1); it is a number, or "),
    ],
)
def test_parameters_that_do_not_fit(parameters: Any, text: str) -> None:
    message = refused(
        lambda: encode_rules([(capped, parameters)], heads=2, dtype="float32", backward=False)
    )
    assert message.startswith(text)


def test_reprs() -> None:
    assert repr(capped) == "<score rule capped(score, cap, slope, query, key)>"
    assert capped.parameters == ("cap", "slope")
    assert capped.__doc__ == "Any rule with parameters and positions."
