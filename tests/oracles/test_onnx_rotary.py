"""The node tests of ONNX's RotaryEmbedding operator, against the rotation of the position axis.

The operator is given tables of cosines and sines, which in the vectors are any numbers; a rotation
has angles. Both are cos · x + sin · (x turned by a right angle), and what they have to agree on is
which coordinates form a pair, which way it turns, and how many of them do.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from polyattn_core.arrays import merge_heads, split_heads
from polyattn_core.positions import Rope, rotate

VECTORS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
RUN = sorted(
    path
    for path in VECTORS.glob("test_rotary_embedding*")
    if path.is_dir() and not path.name.endswith("_expanded")
)


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_vector(path: Path) -> None:
    (node,) = onnx.load(path / "model.onnx").graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    names = [*node.input, *node.output]
    files = [*(f"input_{i}.pb" for i in range(len(node.input))), "output_0.pb"]
    arrays = {
        name: onnx.numpy_helper.to_array(onnx.load_tensor(path / "test_data_set_0" / file))
        for name, file in zip(names, files, strict=True)
    }
    x, cosine, sine = arrays["input"], arrays["cos_cache"], arrays["sin_cache"]
    if x.ndim == 3:
        x = split_heads(x, attributes["num_heads"], "input")
    if "position_ids" in arrays:
        cosine, sine = cosine[arrays["position_ids"]], sine[arrays["position_ids"]]
    interleaved = bool(attributes.get("interleaved"))
    size = attributes.get("rotary_embedding_dim") or x.shape[-1]
    # With a base of almost 1 all pairs turn by the position itself.
    rope = Rope(base=1 + 1e-12, interleaved=interleaved, size=size)
    turned = rotate(x.astype(np.float64), np.full(x.shape[-2], math.pi / 2), rope)

    def spread(table: np.ndarray) -> np.ndarray:
        both = np.repeat(table, 2, axis=-1) if interleaved else np.concatenate([table] * 2, -1)
        return both[:, None]  # for all heads

    found = x.astype(np.float64)
    found[..., :size] = spread(cosine) * x[..., :size] + spread(sine) * turned[..., :size]
    if arrays["output"].ndim == 3:
        found = merge_heads(found)
    np.testing.assert_allclose(found, arrays["output"], rtol=1e-5, atol=1e-5)


def test_all_are_run() -> None:
    assert len(RUN) >= 8, "the wheel holds fewer vectors than it did"
