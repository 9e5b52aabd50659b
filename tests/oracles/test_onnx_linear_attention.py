"""The node tests of ONNX's LinearAttention operator, run through the recurrences of `sparse`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from polyattn_core.arrays import merge_heads, split_heads
from polyattn_registry import create

VECTORS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
RUN = sorted(
    path
    for path in VECTORS.glob("test_linear_attention_*")
    if path.is_dir() and not path.name.endswith("_expanded")
)
TOLERANCE = {"float16": 2e-3, "float32": 1e-5}
MECHANISMS = {
    "linear": "gated-linear",
    "gated": "gated-linear",
    "delta": "delta-rule",
    "gated_delta": "gated-delta",
}


@functools.cache
def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Attributes, inputs and outputs by name."""
    (node,) = onnx.load(path / "model.onnx").graph.node
    assert node.op_type == "LinearAttention"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    schema = onnx.defs.get_schema("LinearAttention")

    def arrays(names: Any, formals: Any, kind: str) -> dict[str, Any]:
        given = [f.name for f, name in zip(formals, names, strict=False) if name]
        files = [path / "test_data_set_0" / f"{kind}_{i}.pb" for i in range(len(given))]
        assert not (path / "test_data_set_0" / f"{kind}_{len(given)}.pb").exists()
        return {
            name: onnx.numpy_helper.to_array(onnx.load_tensor(file))
            for name, file in zip(given, files, strict=True)
        }

    return (
        attributes,
        arrays(node.input, schema.inputs, "input"),
        arrays(node.output, schema.outputs, "output"),
    )


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_vector(path: Path) -> None:
    attributes, inputs, outputs = read(path)
    rule = attributes.get("update_rule", b"gated_delta").decode()
    heads, key_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
    query = split_heads(inputs["query"], heads, "query")
    key = split_heads(inputs["key"], key_heads, "key")
    value = split_heads(inputs["value"], key_heads, "value")
    options: dict[str, Any] = {"dim": heads * query.shape[-1], "heads": heads}
    options |= {"kv_heads": key_heads, "scale": attributes.get("scale") or query.shape[-1] ** -0.5}
    if "delta" in rule:
        options["normalise"] = False
    side: dict[str, Any] = {}
    if "decay" in inputs:
        side["log_decay"] = split_heads(inputs["decay"], key_heads, "decay")
    elif rule == "linear":
        side["log_decay"] = np.zeros((key_heads, key.shape[-2], 1))
    if "beta" in inputs:
        side["beta"] = inputs["beta"].swapaxes(-1, -2)
    mechanism = create(MECHANISMS[rule], **options)
    out, state = mechanism.scan(query, key, value, state=inputs.get("past_state"), **side)
    tolerance = TOLERANCE[outputs["output"].dtype.name]
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(merge_heads(out), outputs["output"])
    close(state.memory, outputs["present_state"])
    assert out.dtype == outputs["output"].dtype
    # The pass in chunks, from which gradients are taken, is the same.
    chunked, _ = mechanism.attend_vjp(query, key, value, state=inputs.get("past_state"), **side)
    close(merge_heads(chunked), outputs["output"])


def test_all_are_run() -> None:
    assert len(RUN) >= 14, "the wheel holds fewer vectors than it did"
