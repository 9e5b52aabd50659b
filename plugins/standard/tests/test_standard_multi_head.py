"""Projections, their parameters, weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core.errors import FileFormatError, ParameterError, ShapeError

Array = npt.NDArray[Any]
Create = Callable[..., Any]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def learned(layer: Any, seed: int = 3) -> Any:
    """The layer with all parameters at random, the vectors too."""
    rng = np.random.default_rng(seed)
    layer.parameters.update({n: rng.standard_normal(a.shape) for n, a in layer.parameters.items()})
    return layer


def inputs(queries: int = 4, keys: int = 6, dim: int = 12) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, queries, dim)),
        rng.standard_normal((2, keys, dim)),
        rng.standard_normal((2, keys, dim)),
    )


def by_einsum(
    layer: Any, query: Array, key: Array, value: Array, hidden: Array | None = None
) -> Array:
    p, config = layer.parameters, layer.config
    size = config.dim // config.heads

    def projected(name: str, x: Array, heads: int) -> Array:
        weight = p[f"{name}.weight"].reshape(heads, size, config.dim)
        bias = p[f"{name}.bias"].reshape(heads, size) if config.bias else np.zeros((heads, size))
        return np.einsum("bnd,hsd->bhns", x, weight) + bias[:, None, :]

    key_heads = config.kv_heads or config.heads
    group = config.heads // key_heads
    q = projected("query", query, config.heads).reshape(2, key_heads, group, -1, size)
    k, v = projected("key", key, key_heads), projected("value", value, key_heads)
    scores = np.einsum("bhgqs,bhks->bhgqk", q, k) / np.sqrt(size)
    if hidden is not None:
        scores = np.where(hidden, -np.inf, scores)
    attended = np.einsum("bhgqk,bhks->bqhgs", scipy.special.softmax(scores, axis=-1), v)
    output = attended.reshape(*query.shape) @ p["output.weight"].T
    result: Array = output + p["output.bias"] if config.bias else output
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_projections(create: Create, bias: bool, kv_heads: int | None) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, kv_heads=kv_heads, bias=bias))
    names = {f"{name}.weight" for name in ("query", "key", "value", "output")}
    names |= {name.replace("weight", "bias") for name in names} if bias else set()
    assert set(layer.parameters) == names
    assert layer.parameters["key.weight"].shape == (3 * (kv_heads or 4), 12)
    arrays = inputs()
    np.testing.assert_allclose(layer(*arrays), by_einsum(layer, *arrays), **CLOSE)


def test_causal(create: Create) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, causal=True))
    hidden = np.array([[j > i + 2 for j in range(6)] for i in range(4)])
    arrays = inputs()
    np.testing.assert_allclose(layer(*arrays), by_einsum(layer, *arrays, hidden), **CLOSE)


def test_mask_is_on_the_projected(create: Create) -> None:
    layer = learned(create("multi-head", dim=12, heads=4))
    query, key, value = inputs()
    seen = np.array([True, False, True, True, False, True])
    expected = by_einsum(layer, query, key, value, ~seen)
    output, pullback = layer.vjp(query, key, value, mask=seen[None])
    np.testing.assert_allclose(output, expected, **CLOSE)
    gradients = pullback(np.ones_like(output)).parameters
    key[:, ~seen] = np.nan
    value[:, ~seen] = np.inf
    output, pullback = layer.vjp(query, key, value, mask=seen[None])
    np.testing.assert_allclose(output, expected, **CLOSE)
    for name, gradient in pullback(np.ones_like(output)).parameters.items():
        np.testing.assert_allclose(gradient, gradients[name], **CLOSE)


def test_scale_softcap_and_positions(create: Create) -> None:
    """They act between the projections: without these they do what they do elsewhere."""
    options: dict[str, Any] = {
        "dim": 12, "heads": 3, "scale": 0.2, "softcap": 2.0, "position": "rope",
    }  # fmt: skip
    layer = create("multi-head", **options, bias=False)
    layer.parameters.update(dict.fromkeys(layer.parameters, np.eye(12)))
    arrays = inputs()
    expected = create("scaled-dot-product", **options)(*arrays)
    np.testing.assert_allclose(layer(*arrays), expected, **CLOSE)


def test_dropout_is_on_the_weights(create: Create) -> None:
    layer = create("multi-head", dim=12, heads=1, dropout=0.5, bias=False)
    layer.parameters.update(dict.fromkeys(layer.parameters, np.eye(12)))
    plain = create("scaled-dot-product", dim=12, dropout=0.5)
    arrays = inputs()
    output = layer(*arrays, training=True, rng=4)
    np.testing.assert_allclose(output, plain(*arrays, training=True, rng=4), **CLOSE)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_of_parameters(create: Create, kv_heads: int) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, kv_heads=kv_heads, position="t5"))
    arrays = inputs()
    output, pullback = layer.vjp(*arrays)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    found = pullback(incoming).parameters
    assert set(found) == set(layer.parameters)
    rng = np.random.default_rng(2)
    for name, array in layer.parameters.items():
        assert found[name].shape == array.shape
        at, along = array.astype(np.float64), rng.standard_normal(array.shape)
        # The table of positions is float32, so that a step must not be tiny.
        step = 1e-3 if array.dtype == np.float32 else 1e-6
        values = []
        for sign in (1, -1):
            layer.parameters.update({name: at + sign * step * along}, partial=True)
            values.append((layer(*arrays) * incoming).sum())
        layer.parameters.update({name: at}, partial=True)
        numeric = (values[0] - values[1]) / (2 * step)
        assert (found[name] * along).sum() == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_first_parameters(create: Create) -> None:
    layer = create("multi-head", dim=64, heads=4, kv_heads=2)
    for name, width in (("query", 64), ("key", 32), ("value", 32), ("output", 64)):
        weight, bound = layer.parameters[f"{name}.weight"], np.sqrt(6 / (64 + width))
        assert abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
        assert not layer.parameters[f"{name}.bias"].any()

    other = create("multi-head", dim=64, heads=4, kv_heads=2)
    np.testing.assert_array_equal(
        other.parameters["query.weight"], layer.parameters["query.weight"]
    )
    other.initialise(5)
    assert (other.parameters["query.weight"] != layer.parameters["query.weight"]).any()
    layer.initialise(5)
    np.testing.assert_array_equal(
        other.parameters["query.weight"], layer.parameters["query.weight"]
    )


def test_parameters_in_a_file(create: Create, tmp_path: Path) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, position="t5"))
    layer.parameters.save(tmp_path / "layer.safetensors")
    other = create("multi-head", dim=12, heads=4, position="t5")
    arrays = inputs()
    assert not np.allclose(other(*arrays), layer(*arrays))
    other.parameters.load(tmp_path / "layer.safetensors")
    np.testing.assert_array_equal(other(*arrays), layer(*arrays))

    smaller = create("multi-head", dim=8, heads=4, position="t5")
    with pytest.raises(ParameterError, match="expected shape"):
        smaller.parameters.load(tmp_path / "layer.safetensors")
    with pytest.raises(ParameterError, match=r"surplus position\.table"):
        create("multi-head", dim=12, heads=4).parameters.load(tmp_path / "layer.safetensors")
    (tmp_path / "other").write_bytes(b"not that format")
    with pytest.raises(FileFormatError, match="a safetensors file"):
        layer.parameters.load(tmp_path / "other")


@pytest.mark.parametrize("name", ["cosine", "softmax-one"])
def test_learned_numbers_in_a_file(create: Create, tmp_path: Path, name: str) -> None:
    mechanism = learned(create(name, dim=12, heads=4))
    mechanism.parameters.save(tmp_path / "numbers")
    other = create(name, dim=12, heads=4)
    other.parameters.load(tmp_path / "numbers")
    arrays = inputs()
    np.testing.assert_array_equal(other(*arrays), mechanism(*arrays))
    with pytest.raises(ParameterError, match="finite"):
        other.parameters.update(dict.fromkeys(other.parameters, np.full(4, np.inf)))


# ---- torch's parameters ----


def torch_state(dim: int = 12, bias: bool = True) -> dict[str, Array]:
    rng = np.random.default_rng(9)
    state = {
        "in_proj_weight": rng.standard_normal((3 * dim, dim)),
        "out_proj.weight": rng.standard_normal((dim, dim)),
    }
    if bias:
        state["in_proj_bias"] = rng.standard_normal(3 * dim)
        state["out_proj.bias"] = rng.standard_normal(dim)
    return state


@pytest.mark.parametrize("bias", [True, False])
def test_load_torch(create: Create, bias: bool) -> None:
    state = torch_state(bias=bias)
    layer = create("multi-head", dim=12, heads=4, bias=bias, position="t5")
    table = layer.parameters["position.table"].copy()
    layer.load_torch(state)
    parts = {"query": slice(0, 12), "key": slice(12, 24), "value": slice(24, 36)}
    for name, rows in parts.items():
        np.testing.assert_array_equal(
            layer.parameters[f"{name}.weight"], state["in_proj_weight"][rows]
        )
        if bias:
            np.testing.assert_array_equal(
                layer.parameters[f"{name}.bias"], state["in_proj_bias"][rows]
            )
    np.testing.assert_array_equal(layer.parameters["output.weight"], state["out_proj.weight"])
    np.testing.assert_array_equal(layer.parameters["position.table"], table)


@pytest.mark.parametrize(
    ("options", "changes", "text"),
    [
        ({}, {"in_proj_bias": None}, "expected exactly in_proj_bias, in_proj_weight"),
        ({}, {"bias_k": np.ones((1, 1, 12))}, "bias_k"),
        ({"bias": False}, {}, "expected exactly in_proj_weight, out_proj.weight"),
        ({}, {"in_proj_weight": np.ones((30, 12))}, "in_proj_weight: got .*expected 36 rows"),
        ({}, {"in_proj_weight": 3.0}, "in_proj_weight: got .*expected 36 rows"),
        ({}, {"in_proj_weight": np.ones((36, 11))}, r"query\.weight: got \(12, 11\)"),
        ({}, {"out_proj.bias": np.ones(11)}, r"output\.bias: got \(11,\); expected shape \(12,\)"),
        ({}, {"out_proj.bias": np.full(12, np.nan)}, r"output\.bias: got values .*not finite"),
        ({"kv_heads": 2}, {}, r"key\.weight: got \(12, 12\); expected shape \(6, 12\)"),
    ],
)
def test_load_torch_errors(
    create: Create, options: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    layer = create("multi-head", **{"dim": 12, "heads": 4, **options})
    before = {name: array.copy() for name, array in layer.parameters.items()}
    state = {n: a for n, a in {**torch_state(), **changes}.items() if a is not None}
    with pytest.raises(ParameterError, match=text):
        layer.load_torch(state)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("widths", "argument"), [((12, 6, 6), "key"), ((12, 12, 6), "value"), ((12, 12, 24), "value")]
)
def test_width_errors(create: Create, widths: tuple[int, ...], argument: str) -> None:
    layer = create("multi-head", dim=12, heads=4, kv_heads=2)
    with pytest.raises(ShapeError, match=f"^{argument}: "):
        layer(*(np.ones((5, width)) for width in widths))


# ---- heads of another size, norms, windows, biases in part ----


def rms(x: Array, weight: Array, epsilon: float) -> Array:
    return np.array(
        [[[r / np.sqrt(np.mean(r**2) + epsilon) * weight for r in h] for h in b] for b in x]
    )


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("head_size", [2, 5])
def test_head_size_and_norms(create: Create, head_size: int, kv_heads: int) -> None:
    options: dict[str, Any] = {"heads": 4, "kv_heads": kv_heads, "head_size": head_size}
    layer = learned(create("multi-head", dim=12, **options, query_key_norm=True, norm_epsilon=0.1))
    p = layer.parameters
    assert p["query.weight"].shape == (4 * head_size, 12)
    assert p["output.weight"].shape == (12, 4 * head_size)
    assert p["key_norm.weight"].shape == (head_size,)
    query, key, value = inputs()

    def split(name: str, x: Array) -> Array:
        y = x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        return y.reshape(*y.shape[:2], -1, head_size).swapaxes(1, 2)

    q = rms(split("query", query), p["query_norm.weight"], 0.1)
    k = rms(split("key", key), p["key_norm.weight"], 0.1)
    k, v = (np.repeat(x, 4 // kv_heads, axis=1) for x in (k, split("value", value)))
    weights = scipy.special.softmax(q @ k.swapaxes(2, 3) / np.sqrt(head_size), axis=-1)
    merged = (weights @ v).swapaxes(1, 2).reshape(2, 4, -1)
    expected = merged @ p["output.weight"].T + p["output.bias"]
    np.testing.assert_allclose(layer(query, key, value), expected, **CLOSE)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_window(create: Create, causal: bool, window: int) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, causal=causal, window=window))
    gap = np.arange(4)[:, None] + 2 - np.arange(6)  # the last query is at the last key
    seen = (gap >= 0) & (gap < window) if causal else abs(gap) <= window // 2
    arrays = inputs()
    np.testing.assert_allclose(layer(*arrays), by_einsum(layer, *arrays, ~seen), **CLOSE)
    assert not np.allclose(layer(*arrays), by_einsum(layer, *arrays))


@pytest.mark.parametrize(("bias", "last"), [(True, False), (False, True), (True, None)])
def test_output_bias(create: Create, bias: bool, last: bool | None) -> None:
    layer = learned(create("multi-head", dim=12, heads=4, bias=bias, output_bias=last))
    names = {name for name in layer.parameters if name.endswith("bias")}
    inner = {"query.bias", "key.bias", "value.bias"} if bias else set()
    assert names == inner | ({"output.bias"} if last or last is None else set())
    whole = create("multi-head", dim=12, heads=4)
    zeros = {n: np.zeros(12) for n in whole.parameters if n.endswith("bias")}
    whole.parameters.update({**zeros, **layer.parameters})
    arrays = inputs()
    np.testing.assert_array_equal(layer(*arrays), whole(*arrays))


def test_gradients_of_norms(create: Create) -> None:
    layer = learned(
        create(
            "multi-head",
            dim=12,
            heads=4,
            kv_heads=2,
            head_size=6,
            query_key_norm=True,
            position="rope",
            window=3,
            causal=True,
            output_bias=False,
        )
    )
    arrays = inputs()
    output, pullback = layer.vjp(*arrays)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    found = pullback(incoming)
    assert set(found.parameters) == set(layer.parameters)
    rng = np.random.default_rng(2)
    for name, array in layer.parameters.items():
        at, along = array.copy(), rng.standard_normal(array.shape)
        values = []
        for sign in (1, -1):
            layer.parameters.update({name: at + sign * 1e-6 * along}, partial=True)
            values.append((layer(*arrays) * incoming).sum())
        layer.parameters.update({name: at}, partial=True)
        numeric = (values[0] - values[1]) / 2e-6
        assert (found.parameters[name] * along).sum() == pytest.approx(numeric, rel=1e-5, abs=1e-6)
    for place, name in enumerate(("query", "key", "value")):
        along = rng.standard_normal(arrays[place].shape)
        values = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[place] = arrays[place] + sign * 1e-6 * along
            values.append((layer(*moved) * incoming).sum())
        numeric = (values[0] - values[1]) / 2e-6
        assert (getattr(found, name) * along).sum() == pytest.approx(numeric, rel=1e-5, abs=1e-6)
