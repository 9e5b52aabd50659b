"""The expert that a number of experts stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core import resolver
from polyattn_core.arrays import Array, merge_heads, split_heads
from polyattn_core.config import AttentionConfig
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.products import matmul
from polyattn_core.spec import Capabilities, MechanismSpec

SPEC = MechanismSpec(
    name="projected",
    family="moe",
    summary="Dot-product attention with learned projections of queries and outputs",
    factory="polyattn_moe.projected:Projected",
    config="polyattn_core.config:AttentionConfig",
    reference="polyattn_moe.reference:projected",
    capabilities=Capabilities(parametric=True, grouped=False, value_size=False),
)


class Projected(Mechanism):
    """softmax((x_q W_qᵀ) kᵀ/√d) v · W_oᵀ: what differs between experts is on the query's side.

    Keys and values are shared by all experts, as in the mixture of attention heads
    (arXiv:2210.05144): projected by each, they would cost as much for few queries as for all.
    """

    def __init__(self, config: AttentionConfig, *, spec: MechanismSpec = SPEC) -> None:
        super().__init__(config, spec=spec)
        self._attention: Mechanism = resolver.current().create(
            "standard/scaled-dot-product",
            dim=config.dim, heads=config.heads, threads=config.threads,
        )  # fmt: skip

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        dim = self.config.dim
        bound = np.sqrt(3 / dim)  # Glorot
        names = ("query.weight", "output.weight")
        return {name: rng.uniform(-bound, bound, (dim, dim)) for name in names}

    def _affine(self, name: str, array: Array) -> Array:
        weight = self.parameters.cast(name, array.dtype)
        merged = matmul(merge_heads(array), weight.T, self.config.threads)
        return split_heads(merged, self.config.heads, name)

    def _affine_pullback(
        self, name: str, array: Array, gradient: Array, learned: dict[str, Array]
    ) -> Array:
        merged, incoming = merge_heads(array), merge_heads(gradient)
        learned[name] = np.einsum("bno,bni->oi", incoming, merged, optimize=True)
        weight = self.parameters.cast(name, array.dtype)
        return split_heads(matmul(incoming, weight, self.config.threads), self.config.heads, name)

    def _projected(self, call: Call) -> Call:
        return replace(call, query=self._affine("query.weight", call.query))

    def _forward(self, call: Call) -> Array:
        return self._affine("output.weight", self._attention._forward(self._projected(call)))

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        attended, pull = self._attention._vjp(self._projected(call))

        def pullback(gradient: Array) -> Gradients:
            learned: dict[str, Array] = {}
            found = pull(self._affine_pullback("output.weight", attended, gradient, learned))
            query: Any = self._affine_pullback("query.weight", call.query, found.query, learned)
            return Gradients(query, found.key, found.value, found.bias, learned)

        return self._affine("output.weight", attended), pullback
