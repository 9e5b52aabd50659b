"""Multi-head attention with learned projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, merge_heads, split_heads
from polyattn_core.errors import ParameterError, ShapeError
from polyattn_core.masks import Causal, Mask, MaskShape, Window
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.products import matmul
from polyattn_core.spec import MechanismSpec

from .config import MultiHeadConfig
from .norms import rms_norm
from .softmax import ScaledDotProduct

_INPUTS = ("query", "key", "value")
_NORMED = ("query", "key")

_Undo = Callable[[Array, dict[str, Array]], Array]
"""From a gradient to that of the input; puts those of parameters into the dictionary."""


class MultiHead(ScaledDotProduct):
    """A layer of the transformer: heads with learned projections in and out.

        concatₕ softmax(scale · (x_q W_qᵀ)(x_k W_kᵀ)ᵀ) (x_v W_vᵀ) · W_oᵀ

    where each of `heads` heads has its part of the projections, and scale is 1/√(head size). With
    `kv_heads` fewer keys and values are projected, each for a group of heads. The head size is
    dim / heads, or `head_size`. With `window` a query sees the keys near it, as in
    `sliding-window`. With `query_key_norm` the projected queries and keys x of each head become

        g ⊙ x / √(mean(x²) + norm_epsilon)

    with a learned g for all query heads and one for all key heads, before positions turn them.

    O(n² dim + n dim²) time, O(n dim) memory.

    Queries, keys and values are (…, tokens, dim), whatever `kv_heads`, and so is the output. By
    heads, the inputs are that split into `heads` heads *before* the projections. A query that sees
    nothing attends to 0 and gets `output.bias`.

    The parameters are in torch's layout, (out, in): `query.weight` (heads · head size, dim),
    `key.weight` and `value.weight` (kv_heads · head size, dim), `output.weight` (dim, heads · head
    size), and with `bias` one vector each, `query.bias` … `output.bias`, of which the last may be
    there or not by `output_bias`. They start at random (Glorot), the same for every instance until
    `initialise` is called with a seed; the vectors start at 0. With `query_key_norm` there are
    `query_norm.weight` and `key_norm.weight` (head size,), which start at 1.

    Raises
    ------
    ShapeError
        By calls, where the width of keys or values is not `dim`.

    References
    ----------
    Vaswani et al., Attention is all you need, arXiv:1706.03762; grouped heads: Ainslie et al., GQA,
    arXiv:2305.13245; norms of queries and keys: Dehghani et al., Scaling vision transformers to 22
    billion parameters, arXiv:2302.05442.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).normal(size=(2, 5, 8))
    >>> layer = pa.create("multi-head", dim=8, heads=4, kv_heads=2, causal=True)
    >>> layer.initialise(7)
    >>> layer(x).shape
    (2, 5, 8)
    >>> layer.parameters["key.weight"].shape
    (4, 8)
    """

    by_row = False  # NumPy's products, which project, depend on the number of rows

    def __init__(self, config: MultiHeadConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        # Inputs have `heads` heads whatever kv_heads is: the projections come behind the split.
        self._key_heads = config.heads

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        dim, size = config.dim, config.projected_size
        width, key_width = size * config.heads, size * config.key_heads
        shapes = {
            "query": (width, dim), "key": (key_width, dim), "value": (key_width, dim),
            "output": (dim, width),
        }  # fmt: skip
        arrays = super()._initial_parameters(rng)
        for name, shape in shapes.items():
            bound = np.sqrt(6 / sum(shape))  # Glorot: keeps variances through the layer
            arrays[f"{name}.weight"] = rng.uniform(-bound, bound, shape)
            if name in config.with_bias:
                arrays[f"{name}.bias"] = np.zeros(shape[0])
        if config.query_key_norm:
            arrays |= {f"{name}_norm.weight": np.ones(size) for name in _NORMED}
        return arrays

    def _own_mask(self, shape: MaskShape) -> Mask | None:
        config = self.config
        if config.window is None:
            return super()._own_mask(shape)
        if config.causal:
            return Causal() & Window(config.window - 1, 0)
        return Window(config.window // 2, config.window // 2)

    def load_torch(self, state: Mapping[str, Any]) -> None:
        """Take the weights of a `torch.nn.MultiheadAttention` from its `state_dict()`.

        Parameters
        ----------
        state
            Names and arrays, or tensors on the CPU: `in_proj_weight`, `out_proj.weight` and, with
            `bias`, `in_proj_bias`, `out_proj.bias`.

        Raises
        ------
        ParameterError
            Where names or shapes do not fit this mechanism; nothing has been set then.
        """
        names = {"in_proj_weight", "out_proj.weight"}
        biases = {"query", "output"} <= self.config.with_bias  # torch has both or neither
        if biases:
            names |= {"in_proj_bias", "out_proj.bias"}
        if set(state) != names:
            raise ParameterError(
                "state", ", ".join(sorted(state)), f"exactly {', '.join(sorted(names))}"
            )
        arrays: dict[str, Array] = {}
        for kind in ("weight", "bias") if biases else ("weight",):
            together = np.asarray(state[f"in_proj_{kind}"])
            if together.shape[:1] != (3 * self.config.dim,):
                raise ParameterError(
                    f"in_proj_{kind}", together.shape, f"{3 * self.config.dim} rows"
                )
            for name, part in zip(_INPUTS, np.split(together, 3), strict=True):
                arrays[f"{name}.{kind}"] = part
            arrays[f"output.{kind}"] = np.asarray(state[f"out_proj.{kind}"])
        # The position table, where there is one, is not torch's: it stays.
        self.parameters.update(arrays, partial=True)

    def _forward(self, call: Call) -> Array:
        return self._output(super()._forward(self._projected(call)[0]))

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        inner = self._projected(call)[0]
        output, found = super()._observe(inner, wanted)
        return self._output(output), found

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        inner, inputs, undo = self._projected(call)
        attended, pull = super()._vjp(inner)

        def pullback(gradient: Array) -> Gradients:
            merged = merge_heads(gradient)
            parameters: dict[str, Array] = {}
            d_attended = self._affine_pullback("output", merge_heads(attended), merged, parameters)
            found = pull(split_heads(d_attended, self.config.heads, "gradient"))
            for name, back in undo.items():
                setattr(found, name, back(getattr(found, name), parameters))
            d_query, d_key, d_value = (
                split_heads(
                    self._affine_pullback(name, inputs[name], merge_heads(part), parameters),
                    self.config.heads, name,
                )
                for name, part in zip(_INPUTS, (found.query, found.key, found.value), strict=True)
            )  # fmt: skip
            learned = {**found.parameters, **parameters}
            return Gradients(d_query, d_key, d_value, found.bias, learned)

        return self._output(attended), pullback

    def _projected(self, call: Call) -> tuple[Call, dict[str, Array], dict[str, _Undo]]:
        """The call with projected inputs, the merged inputs, and pullbacks of norms by name."""
        config = self.config
        for name in _INPUTS:
            array = getattr(call, name)
            if array.shape[3] != config.head_dim:
                raise ShapeError(
                    name, array.shape, f"head size {config.head_dim}, as dim= and heads= say"
                )
        inputs = {name: merge_heads(getattr(call, name)) for name in _INPUTS}
        heads = {"query": config.heads, "key": config.key_heads, "value": config.key_heads}
        projected: dict[str, Any] = {
            name: split_heads(self._affine(name, array), heads[name], name)
            for name, array in inputs.items()
        }
        undo: dict[str, _Undo] = {}
        for name in _NORMED if config.query_key_norm else ():
            projected[name], undo[name] = self._normed(f"{name}_norm.weight", projected[name])
        return replace(call, **projected), inputs, undo

    def _normed(self, name: str, array: Array) -> tuple[Array, _Undo]:
        """The norm over the head size, and its pullback."""
        weight = self.parameters.cast(name, array.dtype)
        normed, pull = rms_norm(array, weight, self.config.norm_epsilon)

        def undo(gradient: Array, parameters: dict[str, Array]) -> Array:
            found, parameters[name] = pull(gradient)
            return found

        return normed, undo

    def _output(self, attended: Array) -> Array:
        projected = self._affine("output", merge_heads(attended))
        return split_heads(projected, self.config.heads, "output")

    def _affine(self, name: str, array: Array) -> Array:
        weight = self.parameters.cast(f"{name}.weight", array.dtype)
        result = matmul(array, weight.T, self.config.threads)
        if name in self.config.with_bias:
            result += self.parameters.cast(f"{name}.bias", array.dtype)
        return result

    def _affine_pullback(
        self, name: str, array: Array, gradient: Array, parameters: dict[str, Array]
    ) -> Array:
        flat = gradient.reshape(-1, gradient.shape[-1])
        # Hidden tokens have no gradient, and 0 · NaN must not make them one.
        live = np.any(flat, axis=1, keepdims=True)
        seen = np.where(live, array.reshape(-1, array.shape[-1]), 0)
        parameters[f"{name}.weight"] = matmul(flat.T, seen, self.config.threads)
        if name in self.config.with_bias:
            parameters[f"{name}.bias"] = flat.sum(axis=0)
        weight = self.parameters.cast(f"{name}.weight", array.dtype)
        return matmul(gradient, weight, self.config.threads)
