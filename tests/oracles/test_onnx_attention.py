"""The node tests of ONNX's Attention operator, run through `scaled-dot-product`.

The vectors are those in the wheel of onnx. Each directory is either run or listed with a reason.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from polyattn_core.arrays import merge_heads, split_heads
from polyattn_core.masks import Causal, Dense, Mask, Padding
from polyattn_registry import create

VECTORS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
DIRECTORIES = sorted(path for path in VECTORS.glob("test_attention_*") if path.is_dir())

OTHER_FORM = "_expanded"
"""Directories of the same vectors for a graph of simpler operators, which is not ours to run."""
SKIPPED: Mapping[str, str] = {}
"""Directory → why it is not run. Empty: there is none about integer types in this version."""

RUN = [
    path for path in DIRECTORIES if not path.name.endswith(OTHER_FORM) and path.name not in SKIPPED
]

TOLERANCE = {"float16": 2e-3, "float32": 1e-5}


@dataclass(frozen=True)
class Node:
    """One vector: the operator's attributes, its inputs and the outputs it should have, by name."""

    attributes: Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@functools.cache
def read(path: Path) -> Node:
    (node,) = onnx.load(path / "model.onnx").graph.node
    assert node.op_type == "Attention"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def arrays(names: Any, schema: Any, kind: str) -> dict[str, Any]:
        # An optional input or output that is left out has an empty name, and no file.
        given = [(formal.name, name) for formal, name in zip(schema, names, strict=False) if name]
        files = [path / "test_data_set_0" / f"{kind}_{i}.pb" for i in range(len(given))]
        assert not (path / "test_data_set_0" / f"{kind}_{len(given)}.pb").exists()
        return {
            formal: onnx.numpy_helper.to_array(onnx.load_tensor(file))
            for (formal, _), file in zip(given, files, strict=True)
        }

    schema = onnx.defs.get_schema("Attention")
    return Node(
        attributes,
        arrays(node.input, schema.inputs, "input"),
        arrays(node.output, schema.outputs, "output"),
    )


def attention(node: Node) -> dict[str, Any]:
    """ONNX's Attention in terms of polyattn; all its outputs, by name."""
    attributes, inputs = node.attributes, node.inputs
    query, key, value = inputs["Q"], inputs["K"], inputs["V"]
    flat = query.ndim == 3
    if flat:
        query = split_heads(query, attributes["q_num_heads"], "Q")
        key = split_heads(key, attributes["kv_num_heads"], "K")
        value = split_heads(value, attributes["kv_num_heads"], "V")
    past = 0
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        key = np.concatenate((inputs["past_key"], key), axis=2)
        value = np.concatenate((inputs["past_value"], value), axis=2)

    mask, bias = masked(inputs.get("attn_mask"), key.shape[2])
    if attributes.get("is_causal"):
        # The first query comes behind the past keys; without a past it is at the first key.
        mask = both(mask, Causal(align="upper_left", offset=past))
    if "nonpad_kv_seqlen" in inputs:
        mask = both(mask, Padding(inputs["nonpad_kv_seqlen"]))

    heads, size = query.shape[1], query.shape[3]
    options = {"dim": heads * size, "heads": heads, "kv_heads": key.shape[1]}
    if "scale" in attributes:
        options["scale"] = attributes["scale"]
    # ONNX says with 0 what is None here.
    softcap = attributes.get("softcap") or None
    mechanism = create("scaled-dot-product", softcap=softcap, **options)
    output = mechanism.attend(query, key, value, mask=mask, bias=bias)

    found = {"Y": merge_heads(output) if flat else output, "present_key": key}
    found["present_value"] = value
    if "qk_matmul_output" in node.outputs:
        mode = attributes.get("qk_matmul_output_mode", 0)
        if mode == 3:
            seen = mechanism.observe(query, key, value, "weights", mask=mask, bias=bias)
            found["qk_matmul_output"] = seen.weights
        else:
            # 0: products; 1: after the soft cap; 2: after the bias and mask, too.
            capped = create("scaled-dot-product", softcap=softcap if mode else None, **options)
            extra = {"mask": mask, "bias": bias} if mode == 2 else {}
            found["qk_matmul_output"] = scores(capped, query, key, value, **extra)
    return found


def masked(array: Any, keys: int) -> tuple[Mask | None, Any]:
    """An `attn_mask` as a mask and a bias. Keys beyond its end are hidden."""
    if array is None:
        return None, None
    missing = keys - array.shape[-1]
    hidden = ((0, 0),) * (array.ndim - 1) + ((0, missing),)
    if array.dtype == bool:
        return Dense(np.pad(array, hidden)), None
    bias = np.pad(array, hidden, constant_values=-np.inf)
    lowest = np.isneginf(bias)
    if not lowest.any():
        return None, bias
    return Dense(~lowest), np.where(lowest, 0, bias)


def both(first: Mask | None, second: Mask) -> Mask:
    return second if first is None else first & second


def scores(mechanism: Any, query: Any, key: Any, value: Any, **options: Any) -> Any:
    """What the soft-max is taken of: ln weights + log-sum-exp."""
    # In float64, as logarithms of small weights lose digits.
    arrays = [array.astype(np.float64) for array in (query, key, value)]
    if "bias" in options and options["bias"] is not None:
        options["bias"] = options["bias"].astype(np.float64)
    seen = mechanism.observe(*arrays, "weights", "log_sum_exp", **options)
    with np.errstate(divide="ignore"):
        return (np.log(seen.weights) + seen.log_sum_exp[..., None]).astype(query.dtype)


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_vector(path: Path) -> None:
    node = read(path)
    found = attention(node)
    for name, expected in node.outputs.items():
        tolerance = TOLERANCE[expected.dtype.name]
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(
            found[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(
    "path", [p for p in DIRECTORIES if p.name.endswith(OTHER_FORM)], ids=lambda path: path.name
)
def test_expanded_form_has_the_same_vectors(path: Path) -> None:
    """So nothing is missed by running one of the two."""
    original = VECTORS / path.name.removesuffix(OTHER_FORM)
    assert original in RUN or original.name in SKIPPED
    files = sorted(file.name for file in (path / "test_data_set_0").iterdir())
    assert files == sorted(file.name for file in (original / "test_data_set_0").iterdir())
    for file in files:
        ours = (original / "test_data_set_0" / file).read_bytes()
        assert ours == (path / "test_data_set_0" / file).read_bytes()


def test_every_directory_is_run_or_listed() -> None:
    names = {path.name for path in DIRECTORIES}
    expanded = {name for name in names if name.endswith(OTHER_FORM)}
    assert names == {path.name for path in RUN} | expanded | set(SKIPPED)
    assert set(SKIPPED) <= names
    assert len(RUN) >= 60, "the wheel holds fewer vectors than it did"
    # One set of data each, or some would be left out unnoticed.
    assert all(len(list(path.glob("test_data_set_*"))) == 1 for path in DIRECTORIES)
