"""What users would take otherwise: torch, NumPy, onnxruntime; each where it is installed."""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


@functools.cache
def torch() -> Any:
    """The module, with as many threads as we use; None where it is not installed."""
    if not importlib.util.find_spec("torch"):
        return None
    import torch as module

    from polyattn_core.simd import threads

    module.set_num_threads(threads.limit())
    return module


def sdpa(
    query: Array, key: Array, value: Array, causal: bool = False, mask: Array | None = None,
    dtype: str = "float32",
) -> Callable[[], Any] | None:  # fmt: skip
    """torch's fused kernel on these arrays."""
    module = torch()
    if module is None:
        return None
    kind = getattr(module, dtype)
    tensors = [module.from_numpy(x).to(kind) for x in (query, key, value)]
    seen = None if mask is None else module.from_numpy(mask)
    function = module.nn.functional.scaled_dot_product_attention

    def call() -> Any:
        with module.no_grad():
            return function(*tensors, attn_mask=seen, is_causal=causal)

    return call


def sdpa_with_gradients(
    query: Array, key: Array, value: Array, causal: bool, incoming: Array
) -> Callable[[], Any] | None:
    """torch's fused kernel forward and backward."""
    module = torch()
    if module is None:
        return None
    tensors = [module.from_numpy(x).requires_grad_(True) for x in (query, key, value)]
    gradient = module.from_numpy(incoming)
    function = module.nn.functional.scaled_dot_product_attention

    def call() -> Any:
        output = function(*tensors, is_causal=causal)
        return module.autograd.grad(output, tensors, gradient)

    return call


@functools.cache
def _flex() -> tuple[Any, str]:
    """flex_attention compiled, and why there is none."""
    module = torch()
    if module is None:
        return None, "torch is not installed"
    try:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = module.compile(flex_attention)
        with warnings.catch_warnings(), module.no_grad():
            warnings.simplefilter("ignore")
            compiled(*(module.zeros(1, 1, 128, 64) for _ in range(3)))
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
    return compiled, ""


def flex_problem() -> str:
    """Why flex_attention does not run here; empty where it does."""
    return _flex()[1]


def flex(
    query: Array, key: Array, value: Array, score: Callable[..., Any] | None = None
) -> Callable[[], Any] | None:
    """torch's flex_attention, compiled, with a modification of the scores."""
    compiled, problem = _flex()
    if problem:
        return None
    module = torch()
    tensors = [module.from_numpy(x) for x in (query, key, value)]

    def call() -> Any:
        with module.no_grad():
            return compiled(*tensors, score_mod=score)

    return call


def numpy_attention(q: Array, k: Array, v: Array, causal: bool = False) -> Array:
    """The form with matmul that a user would write."""
    scores = np.matmul(q, k.swapaxes(-1, -2))
    scores *= q.dtype.type(q.shape[-1] ** -0.5)
    if causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf, q.dtype), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.matmul(scores, v)


def onnx(query: Array, key: Array, value: Array, causal: bool) -> Callable[[], Any] | None:
    """The operator Attention of ONNX in onnxruntime."""
    if not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")):
        return None
    import onnxruntime
    from onnx import TensorProto, helper, save_model

    from polyattn_core.simd import threads

    names = ("query", "key", "value")
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in names]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * 4)
    node = helper.make_node("Attention", list(names), ["output"], is_causal=int(causal))
    graph = helper.make_graph([node], "attention", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    file = io.BytesIO()
    save_model(model, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.limit()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            file.getvalue(), options, providers=["CPUExecutionProvider"]
        )
        feed = dict(zip(names, (query, key, value), strict=True))
        session.run(None, {name: array[:1, :1, :2] for name, array in feed.items()})
    except Exception:  # a version without the operator
        return None
    return lambda: session.run(None, feed)
