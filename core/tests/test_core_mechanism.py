"""The base class of mechanisms: levels, defaults, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from polyattn_core import resolver
from polyattn_core.arrays import Array, split_heads
from polyattn_core.config import AttentionConfig
from polyattn_core.errors import (
    ArgumentError,
    CapabilityError,
    DTypeError,
    MaskError,
    MissingInputError,
    ShapeError,
)
from polyattn_core.masks import Causal, Dense, Padding
from polyattn_core.mechanism import Attention, Call, Mechanism
from polyattn_core.spec import Capabilities, SideInput

Build = Callable[..., Any]


class Mean(Mechanism):
    """The mean of the values that are visible, times a side input: NumPy alone."""

    def _forward(self, call: Call) -> Array:
        visible = np.ones((1, 1, call.shape.queries, call.shape.keys))
        if call.mask is not None:
            visible = call.mask.dense(call.shape).astype(float)
        group = call.query.shape[1] // call.value.shape[1]
        value = np.repeat(call.value, group, axis=1)
        weights = visible / np.maximum(visible.sum(axis=-1, keepdims=True), 1)
        return np.asarray(weights @ value * call.side.get("gain", 1.0), call.dtype)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture
def mean(build: Build) -> Any:
    return build(Mean, AttentionConfig, Capabilities(), dim=8, heads=2)


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


# ---- levels ---------------------------------------------------------------------------------


def test_it_is_an_attention(mean: Any) -> None:
    assert isinstance(mean, Attention)
    assert mean.name == "tests/plain"


def test_model_level_is_head_level_split_and_merged(build: Build) -> None:
    mechanism = build(dim=12, heads=4, kv_heads=2)
    query, key, value = numbers(3, 5, 12), numbers(3, 7, 6), numbers(7, 10)
    heads = [split_heads(x, n, "x") for x, n in ((query, 4), (key, 2), (value, 2))]
    expected = mechanism.attend(*heads)
    found = mechanism(query, key, value)
    assert found.shape == (3, 5, 20)
    for h in range(4):
        np.testing.assert_array_equal(found[..., 5 * h : 5 * h + 5], expected[:, h])


def test_defaults(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    tokens, key = numbers(5, 8), numbers(6, 8)
    np.testing.assert_array_equal(mechanism(tokens), mechanism(tokens, tokens, tokens))
    np.testing.assert_array_equal(mechanism(tokens, key), mechanism(tokens, key, key))
    value = numbers(5, 4)
    np.testing.assert_array_equal(mechanism(tokens, value=value), mechanism(tokens, tokens, value))


def test_gradients_of_defaults_are_sums(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    tokens, incoming = numbers(5, 8), numbers(5, 8) ** 2
    _, pull = mechanism.vjp(tokens, tokens, tokens)
    parts = pull(incoming)
    _, pull = mechanism.vjp(tokens)
    found = pull(incoming)
    np.testing.assert_allclose(found.query, parts.query + parts.key + parts.value)
    np.testing.assert_allclose(found.value, parts.value)
    _, pull = mechanism.vjp(tokens, tokens)
    np.testing.assert_allclose(pull(incoming).key, parts.key + parts.value)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_a_single_query(build: Build, lead: tuple[int, ...]) -> None:
    """(dim,) against (…, keys, dim): the one row that (1, dim) gives."""
    mechanism = build(dim=8, heads=2)
    query, key, value = numbers(8), numbers(*lead, 6, 8), numbers(*lead, 6, 4)
    found = mechanism(query, key, value)
    expected = mechanism(query[None], key, value)
    assert found.shape == (*lead, 4)
    np.testing.assert_array_equal(found, expected[..., 0, :])

    incoming = numbers(*lead, 4)
    output, pull = mechanism.vjp(query, key, value)
    np.testing.assert_array_equal(output, found)
    single = pull(incoming)
    _, pull = mechanism.vjp(query[None], key, value)
    row = pull(incoming[..., None, :])
    np.testing.assert_allclose(single.query, row.query[0])
    np.testing.assert_allclose(single.key, row.key)
    np.testing.assert_allclose(single.value, row.value)


def test_gradients_of_what_was_broadcast_are_sums(build: Build) -> None:
    mechanism = build(dim=4)
    query, key, value = numbers(3, 1, 5, 4), numbers(1, 6, 4), numbers(3, 1, 6, 4)
    bias = numbers(3, 1, 1, 6)[:1]
    incoming = numbers(3, 1, 5, 4)
    _, pull = mechanism.attend_vjp(query, key, value, bias=bias)
    found = pull(incoming)
    full = np.broadcast_to(key, (3, 1, 6, 4))
    whole = np.broadcast_to(bias, (3, 1, 5, 6))
    _, pull = mechanism.attend_vjp(query, full, value, bias=whole)
    parts = pull(incoming)
    np.testing.assert_allclose(found.key, parts.key.sum(axis=0), atol=1e-12)
    assert found.bias.shape == bias.shape
    total = parts.bias.sum(axis=(0, 2)).reshape(1, 1, 1, 6)
    np.testing.assert_allclose(found.bias, total, atol=1e-12)


# ---- what is refused ------------------------------------------------------------------------


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
                "array: got float64 array of shape (5, 5); expected a boolean array (..., heads, "
                "queries, keys)"
            ),
        ),
        (
            np.ones((4, 5), bool),
            MaskError,
            "array: got (1, 4, 5); expected 1 or 5 rows",
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
        "statistics: got variance; expected weights, log_sum_exp, entropy, column_mass"
    )
    with pytest.raises(ArgumentError, match=r"expected none for this mechanism$"):
        build(dim=8, capabilities=Capabilities()).observe(*[np.ones((1, 5, 8))] * 3, "output")


@pytest.mark.parametrize("method", ["_vjp", "_observe", "_partial"])
def test_what_is_declared_but_not_implemented(mean: Any, method: str) -> None:
    with pytest.raises(CapabilityError, match="tests/plain does not support"):
        getattr(mean, method)(*[None] * (2 if method == "_observe" else 1))


# ---- side inputs ----------------------------------------------------------------------------

SIDE = Capabilities(
    side_inputs=(
        SideInput(name="gain", shape="()", description="what the mean is multiplied with"),
        SideInput(name="hint", shape="()", description="no matter", required=False),
    )
)


def test_side_inputs(build: Build, mean: Any) -> None:
    mechanism = build(Mean, AttentionConfig, SIDE, dim=8, heads=2)
    tokens = numbers(5, 8)
    np.testing.assert_allclose(mechanism(tokens, gain=2.0), 2 * mean(tokens))
    np.testing.assert_allclose(mechanism(tokens, gain=2.0, hint=1), 2 * mean(tokens))
    for side in ({}, {"gain": None}, {"hint": 1}):
        with pytest.raises(MissingInputError) as missing:
            mechanism(tokens, **side)
        assert str(missing.value) == (
            "tests/plain needs gain=: what the mean is multiplied with, ()"
        )
    with pytest.raises(ArgumentError) as caught:
        mechanism(tokens, gain=2.0, gian=1)
    assert str(caught.value) == (
        "gian: got an argument; expected mask, bias, training, rng or its side inputs (gain, hint)"
    )
    with pytest.raises(ArgumentError, match=r"its side inputs \(none\)$"):
        mean(tokens, gain=2.0)


# ---- the rest -------------------------------------------------------------------------------


def test_an_array_is_a_mask(mean: Any) -> None:
    visible = np.tril(np.ones((5, 5), bool))
    tokens = numbers(5, 8)
    expected = np.cumsum(tokens, axis=0) / np.arange(1, 6)[:, None]
    for mask in (visible, Dense(visible), Causal()):
        np.testing.assert_allclose(mean(tokens, mask=mask), expected)


def test_the_option_causal_is_added_to_the_mask(build: Build) -> None:
    tokens = numbers(7, 8)
    plain, causal = build(dim=8), build(dim=8, causal=True)
    np.testing.assert_array_equal(causal(tokens), plain(tokens, mask=Causal()))
    np.testing.assert_array_equal(
        causal(tokens, mask=Padding(3)), plain(tokens, mask=Causal() & Padding(3))
    )


def test_repr_and_pickle(build: Build, mean: Any) -> None:
    assert repr(mean) == "tests/plain(dim=8, heads=2)"
    mechanism = build(dim=8, position="rope", causal=True)
    tokens = numbers(5, 8)
    expected = mechanism(tokens)
    again = pickle.loads(pickle.dumps(mechanism))
    assert repr(again) == repr(mechanism)
    np.testing.assert_array_equal(again(tokens), expected)
