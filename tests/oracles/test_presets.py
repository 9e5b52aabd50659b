"""Presets of methods rather than models: against torch, and modules of `transformers`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import polyattn as pa

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def heads(array: Any, count: int) -> Any:
    """(…, tokens, dim) as a tensor (…, heads, tokens, size)."""
    return torch.as_tensor(array).unflatten(-1, (count, -1)).transpose(-2, -3)


def inputs(dim: int, queries: int = 70, keys: int = 70, dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, n, dim)).astype(dtype) for n in (queries, keys, keys)]


@pytest.mark.parametrize("tokens", [1, 70, 300])
def test_flash_optimized(tokens: int) -> None:
    """The tiles of the preset give what torch gives, causal, forward and backward."""
    layer = pa.AttentionPreset.FlashOptimized.builder(256).build()
    config = layer.config
    assert (config.heads, config.block_size, config.causal) == (2, 128, True)
    given = inputs(256, tokens, tokens)
    tensors = [torch.tensor(array, requires_grad=True) for array in given]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(heads(x, config.heads) for x in tensors), is_causal=True
    )
    expected = expected.transpose(-2, -3).flatten(-2)
    output, pullback = layer.vjp(*given)
    np.testing.assert_allclose(output, expected.detach(), **CLOSE)
    incoming = np.random.default_rng(1).standard_normal(output.shape).astype(np.float32)
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming)
    for name, tensor in zip(("query", "key", "value"), tensors, strict=True):
        np.testing.assert_allclose(getattr(found, name), tensor.grad, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_performer(causal: bool) -> None:
    """Section 2.4 of the paper: Q′((K′)ᵀV) over its row sums, by the same random features."""
    layer: Any = pa.AttentionPreset.Performer.builder(128).replace(causal=causal).build()
    assert layer.config.heads == 2
    omega = torch.tensor(layer.projection)
    assert omega.shape == (256, 64)
    # Appendix B.2: rows of a block of 64 are orthogonal, and as long as normal vectors are.
    block = omega[:64] @ omega[:64].T
    np.testing.assert_allclose(block - torch.diag(block.diag()), 0, atol=1e-10)
    assert abs(float(block.diag().mean()) / 64 - 1) < 0.1

    def features(x: Any) -> Any:
        x = x / 64**0.25
        return torch.exp(x @ omega.T - (x * x).sum(-1, keepdim=True) / 2) / math.sqrt(256)

    def rule(query: Any, key: Any, value: Any) -> Any:
        own, others = features(heads(query, 2)), features(heads(key, 2))
        products = others[..., :, None] * heads(value, 2)[..., None, :]
        totals = others
        if causal:
            products, totals = products.cumsum(-3), totals.cumsum(-2)
            top = torch.einsum("bhnm,bhnmd->bhnd", own, products)
            bottom = torch.einsum("bhnm,bhnm->bhn", own, totals)
        else:
            top = torch.einsum("bhnm,bhmd->bhnd", own, products.sum(-3))
            bottom = torch.einsum("bhnm,bhm->bhn", own, totals.sum(-2))
        return (top / bottom[..., None]).transpose(-2, -3).flatten(-2)

    given = inputs(128, 70, 70 if causal else 33, np.float64)
    tensors = [torch.tensor(array, requires_grad=True) for array in given]
    expected = rule(*tensors)
    output, pullback = layer.vjp(*given)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-9, atol=1e-11)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming)
    for name, tensor in zip(("query", "key", "value"), tensors, strict=True):
        np.testing.assert_allclose(getattr(found, name), tensor.grad, rtol=1e-7, atol=1e-9)


def test_switch_transformer() -> None:
    """One sequence overflows experts: routing, dropping and attention are those of its modules."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: make oracles"
    )
    pytest.importorskip("polyattn_moe", reason="polyattn-moe is not installed")
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    tokens, dim = 24, 256
    layer: Any = pa.AttentionPreset.SwitchTransformer.builder(dim).build()
    config = transformers.SwitchTransformersConfig(
        d_model=dim, d_kv=64, num_heads=4, num_experts=8, expert_capacity=4
    )
    config._attn_implementation = "eager"
    assert config.router_jitter_noise == layer.config.jitter_noise
    assert config.dropout_rate == layer.experts[0].config.dropout
    torch.manual_seed(0)
    router = switch.SwitchTransformersTop1Router(config).eval()
    experts = [
        switch.SwitchTransformersAttention(config, has_relative_attention_bias=True).eval()
        for _ in range(8)
    ]
    with torch.no_grad():
        for module in (router, *experts):
            for parameter in module.parameters():
                parameter.normal_(std=0.08)
    arrays = {"router.weight": router.classifier.weight}
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for i, expert in enumerate(experts):
        for theirs, ours in names.items():
            arrays[f"experts.{i}.{ours}.weight"] = getattr(expert, theirs).weight
        arrays[f"experts.{i}.position.table"] = expert.relative_attention_bias.weight.T
    layer.parameters.update({name: x.detach().numpy() for name, x in arrays.items()})

    x = torch.randn(2, tokens, dim)
    x[1] = x[1, :1] + 0.3 * x[1]  # tokens alike, so that experts are full
    with torch.no_grad():
        assigned, share, _ = router(x.clone())
        attended = torch.stack([expert(x)[0] for expert in experts], dim=2)
        expected = (assigned[..., None] * share[..., None] * attended).sum(dim=2)
    found = layer(x.numpy())
    routing = layer.last_routing
    assert routing.capacity == 4
    np.testing.assert_array_equal(routing.assigned, assigned.numpy().astype(bool))
    assert routing.dropped.sum() > 5
    assert not found[routing.dropped > 0].any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
