"""Encoder and decoder blocks against torch's layers with their weights, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn_core.errors import ParameterError

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

Tensor = Callable[..., Any]
Close = Callable[..., None]


def layer(kind: str, activation: str, norm_first: bool, bias: bool, dtype: Any) -> Any:
    torch.manual_seed(4)
    cls = (
        torch.nn.TransformerEncoderLayer if kind == "encoder" else torch.nn.TransformerDecoderLayer
    )
    made = cls(
        24, 4, 40, dropout=0.0, activation=activation, norm_first=norm_first, batch_first=True,
        bias=bias,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.to(dtype)


def block(kind: str, activation: Any, norm_first: bool, bias: bool) -> pa.AttentionPipeline:
    make = pa.encoder_block if kind == "encoder" else pa.decoder_block
    return make(24, 4, 40, activation=activation, norm_first=norm_first, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 2e-5)])
def test_blocks(
    tensor: Tensor, close: Close, kind: str, activation: str, norm_first: bool, bias: bool,
    dtype: str, tolerance: float,
) -> None:  # fmt: skip
    theirs = layer(kind, activation, norm_first, bias, getattr(torch, dtype))
    ours = block(kind, activation, norm_first, bias)
    pa.load_torch_layer(ours, theirs.state_dict())
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 9, 24)).astype(dtype)
    memory = rng.standard_normal((3, 7, 24)).astype(dtype)
    lengths = np.array([9, 1, 5])
    hidden = torch.from_numpy(np.arange(9) >= lengths[:, None])
    tx, tm = tensor(x, gradient=True), tensor(memory, gradient=True)
    if kind == "encoder":
        expected = theirs(tx, src_key_padding_mask=hidden)
        output, pullback = ours.vjp(x, mask=pa.masks.Padding(tuple(lengths)))
    else:
        causal = torch.nn.Transformer.generate_square_subsequent_mask(9, dtype=tx.dtype)
        expected = theirs(tx, tm, tgt_mask=causal)
        output, pullback = ours.vjp(x, memory)
    direction = rng.standard_normal(x.shape).astype(dtype)
    if kind == "encoder":  # torch computes something for padding, and so do we; look at the rest
        direction[np.asarray(hidden)] = 0
        shown = ~np.asarray(hidden)
    else:
        shown = np.ones((3, 9), bool)
    close(output[shown], expected[torch.from_numpy(shown)], tolerance, "output")
    expected.backward(tensor(direction))
    found = pullback(direction)
    close(found.query, tx.grad, 10 * tolerance, "query")
    if kind == "decoder":
        close(found.key, tm.grad, 10 * tolerance, "memory")
    state = theirs.state_dict()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(gradients) == set(state)
    close(
        found.parameters["feed_forward.up.weight"],
        gradients["linear1.weight"],
        10 * tolerance,
        "up",
    )
    close(found.parameters["norm2.weight"], gradients["norm2.weight"], 10 * tolerance, "norm2")
    together = np.concatenate(
        [found.parameters[f"self_attention.{n}.weight"] for n in ("query", "key", "value")]
    )
    close(together, gradients["self_attn.in_proj_weight"], 10 * tolerance, "projections")


def test_states_that_do_not_fit() -> None:
    ours = block("encoder", "relu", False, True)
    state = layer("encoder", "relu", False, True, torch.float32).state_dict()
    before = {name: array.copy() for name, array in ours.parameters.items()}
    cases = [
        ({**state, "norm9.weight": torch.ones(3)}, "surplus norm9.weight"),
        ({n: a for n, a in state.items() if n != "linear1.bias"}, "missing linear1.bias"),
        ({**state, "linear1.bias": torch.ones(3)}, "feed_forward.up.bias"),
        (
            layer("decoder", "relu", False, True, torch.float32).state_dict(),
            "surplus multihead_attn",
        ),
    ]
    for wrong, text in cases:
        with pytest.raises(ParameterError, match=text):
            pa.load_torch_layer(ours, wrong)
        for name, array in before.items():
            np.testing.assert_array_equal(ours.parameters[name], array)
