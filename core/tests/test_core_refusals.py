"""What the base class of mechanisms refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from polyattn_core import resolver
from polyattn_core.errors import (
    ArgumentError,
    CapabilityError,
    DTypeError,
    MaskError,
    ShapeError,
)
from polyattn_core.masks import Causal, Padding
from polyattn_core.spec import Capabilities

Build = Callable[..., Any]


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture
def registry() -> Iterator[None]:
    class Fake:
        def create(self, name: str, /, **options: Any) -> Any:
            raise AssertionError

        def having(self, capability: str, value: object = True) -> Sequence[str]:
            return [f"{capability}-{value}-{n}" for n in range(9)]

    before = resolver.install(Fake())
    yield
    resolver.install(before)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ([(5, 7)], "query: got (5, 7); expected a last axis of dim=8"),
        ([()], "query: got (); expected at least 2 axes: (..., tokens, width)"),
        ([(8,)], "key: got (8,); expected at least 2 axes: (..., tokens, width)"),
        ([(5, 8), (6, 7)], "key: got (6, 7); expected a last axis of 8"),
        ([(5, 8), (8,)], "key: got (8,); expected at least 2 axes: (..., tokens, width)"),
        ([(5, 8), (6, 8), (6, 5)], "value: got (6, 5); expected a last axis that splits into 2"),
        ([(5, 8), (6, 8), (7, 8)], "value: got (2, 7, 4); expected 6 tokens like key (2, 6, 4)"),
        ([(0, 5, 8)], "query, key, value: got (0,); expected no empty leading axis"),
        ([(0, 8)], "query: got (2, 0, 4); expected no empty axis among heads, tokens, head size"),
    ],
)
def test_shapes_at_model_level(build: Build, arrays: list[tuple[int, ...]], text: str) -> None:
    mechanism = build(dim=8, heads=2)
    for call in (mechanism, mechanism.vjp):
        with pytest.raises(ShapeError) as caught:
            call(*(np.ones(shape) for shape in arrays))
        assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("query", "key", "text"),
    [
        (
            (4, 5, 4),
            (2, 5, 4),
            "query: got (4, 5, 4); expected 2 heads of size 4, as dim=8 and heads=2 say",
        ),
        (
            (2, 5, 3),
            (2, 5, 3),
            "query: got (2, 5, 3); expected 2 heads of size 4, as dim=8 and heads=2 say",
        ),
        (
            (2, 5, 4),
            (1, 5, 4),
            "key: got (1, 5, 4); expected 2 heads, as heads= and kv_heads= say",
        ),
    ],
)
def test_shapes_at_head_level(
    build: Build, query: tuple[int, ...], key: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        build(dim=8, heads=2).attend(np.ones(query), np.ones(key), np.ones(key))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (
            "causal",
            MaskError,
            (
                "mask: got causal; expected a mask of polyattn.masks, or a boolean array; numbers "
                "to be added to scores are passed as bias="
            ),
        ),
        (
            np.zeros((5, 5)),
            MaskError,
            (
                "mask: got float64 array of shape (5, 5); expected a boolean array (..., heads, "
                "queries, keys)"
            ),
        ),
        (
            np.ones((4, 5), bool),
            MaskError,
            "mask: got (1, 4, 5); expected 1 or 5 rows",
        ),
    ],
    ids=["text", "numbers", "rows"],
)
def test_masks(build: Build, mask: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        build(dim=8)(np.ones((5, 8)), mask=mask)
    assert str(caught.value) == text


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (3, 1, 5, 5), (1, 1, 1, 5, 5), (2, 5, 5)])
def test_biases(build: Build, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        build(dim=8)(np.ones((2, 5, 8)), bias=np.ones(shape))
    assert str(caught.value) == (
        f"bias: got {shape}; expected a shape that broadcasts to (2, 1, 5, 5)"
    )


def test_gradients_of_another_shape(build: Build) -> None:
    mechanism = build(dim=8)
    _, pull = mechanism.vjp(np.ones((5, 8)))
    with pytest.raises(ShapeError) as caught:
        pull(np.ones((5, 7)))
    assert str(caught.value) == "gradient: got (5, 7); expected the output's shape (5, 8)"
    _, pull = mechanism.vjp(np.ones(8), np.ones((5, 8)))
    with pytest.raises(ShapeError) as caught:
        pull(np.ones((1, 8)))
    assert str(caught.value) == "gradient: got (1, 8); expected the output's shape (8,)"
    _, pull = mechanism.attend_vjp(*[np.ones((1, 5, 8))] * 3)
    with pytest.raises(ShapeError, match=r"^gradient: got \(5, 8\); expected the output's shape"):
        pull(np.ones((5, 8)))


def test_dtypes(build: Build) -> None:
    mechanism = build(dim=8, capabilities=Capabilities(dtypes=("float32",)))
    with pytest.raises(CapabilityError, match=r"^tests/plain does not support float64"):
        mechanism(np.ones((5, 8)))
    with pytest.raises(DTypeError, match=r"^query: got int64"):
        mechanism(np.ones((5, 8), np.int64))


def test_dropout_wants_a_seed(build: Build) -> None:
    mechanism = build(dim=8, dropout=0.5)
    tokens = numbers(30, 8)
    with pytest.raises(ArgumentError) as caught:
        mechanism(tokens, training=True)
    assert str(caught.value) == (
        "rng: got None; expected a seed or generator: dropout is on in training"
    )
    plain = mechanism(tokens)
    np.testing.assert_array_equal(mechanism(tokens, rng=3), plain)
    dropped = mechanism(tokens, training=True, rng=3)
    assert not np.allclose(dropped, plain)
    np.testing.assert_array_equal(mechanism(tokens, training=True, rng=3), dropped)
    generator = np.random.default_rng(3)
    assert not np.allclose(
        mechanism(tokens, training=True, rng=generator),
        mechanism(tokens, training=True, rng=generator),
    )


# ---- capabilities ---------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("lacking", "call", "text"),
    [
        (
            {"gradient": False},
            lambda m: m.vjp(np.ones((5, 8))),
            "does not support gradients; mechanisms that do: gradient-True-0, gradient-True-1, ",
        ),
        (
            {"bias": False},
            lambda m: m(np.ones((5, 8)), bias=np.zeros(5)),
            "does not support an additive bias; mechanisms that do: bias-True-0, ",
        ),
        (
            {"masks": ("causal", "dense")},
            lambda m: m(np.ones((5, 8)), mask=Causal() & Padding(3)),
            "does not support padding masks; mechanisms that do: masks-padding-0, ",
        ),
        (
            {"cross": False},
            lambda m: m(np.ones((5, 8)), np.ones((6, 8))),
            "does not support another number of keys than of queries; mechanisms that do: cross-",
        ),
        (
            {"dtypes": ("float32",)},
            lambda m: m(np.ones((5, 8))),
            "does not support float64; mechanisms that do: dtypes-float64-0, ",
        ),
        (
            {"statistics": ("weights",)},
            lambda m: m.observe(*[np.ones((1, 5, 8))] * 3, "weights", "entropy"),
            "does not support the statistic 'entropy'; mechanisms that do: statistics-entropy-0, ",
        ),
        (
            {},
            lambda m: m.attend_partial(*[np.ones((1, 5, 8))] * 3),
            "does not support partial results; mechanisms that do: partial-True-0, ",
        ),
    ],
)
def test_what_is_not_declared(
    build: Build, lacking: dict[str, Any], call: Callable[[Any], Any], text: str
) -> None:
    mechanism = build(dim=8, capabilities=Capabilities(**lacking))
    with pytest.raises(CapabilityError) as caught:
        call(mechanism)
    assert str(caught.value).startswith(f"tests/plain {text}")
    assert len(caught.value.alternatives) == 6


@pytest.mark.usefixtures("registry")
def test_fewer_key_heads_are_refused_when_it_is_made(build: Build) -> None:
    with pytest.raises(CapabilityError, match="does not support fewer key heads than query heads"):
        build(dim=8, heads=4, kv_heads=2, capabilities=Capabilities(grouped=False))


def test_without_a_registry_no_alternatives_are_known(build: Build) -> None:
    before = resolver.install(None)
    try:
        with pytest.raises(CapabilityError) as caught:
            build(dim=8, capabilities=Capabilities(gradient=False)).vjp(np.ones((5, 8)))
        assert str(caught.value) == "tests/plain does not support gradients"
        with pytest.raises(Exception, match="no registry is loaded: import polyattn"):
            resolver.current()
    finally:
        resolver.install(before)


def test_statistics_that_do_not_exist(build: Build) -> None:
    with pytest.raises(ArgumentError) as caught:
        build(dim=8).observe(*[np.ones((1, 5, 8))] * 3, "variance")
    assert str(caught.value) == (
        "statistics: got variance; expected weights, log_sum_exp, entropy, column_mass, top_weights"
    )
    with pytest.raises(ArgumentError, match=r"expected none for this mechanism$"):
        build(dim=8, capabilities=Capabilities()).observe(*[np.ones((1, 5, 8))] * 3, "output")
