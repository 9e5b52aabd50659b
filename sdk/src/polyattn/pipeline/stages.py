"""The stages that pipelines are built of, apart from attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from polyattn_core.errors import ArgumentError
from polyattn_core.products import matmul
from polyattn_core.simd import layers

from .stage import Array, Flow, Stage, StageGradients, StagePullback, flat


class Norm(Stage):
    """Base of normalising stages: each token by itself."""

    kind: ClassVar[str] = "norm"
    centred: ClassVar[bool]

    def __init__(self, *, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        if not 0 < epsilon < 1:
            raise ArgumentError("epsilon", epsilon, "a number between 0 and 1")
        self.epsilon, self.offset = float(epsilon), float(offset)

    def run(self, flow: Flow) -> Array:
        return self._apply(flow.stream)[0]

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        x = flow.stream
        out, rows, weight, means, scales = self._apply(x)

        def pullback(gradient: Array) -> StageGradients:
            d_x, d_weight, d_bias = layers.norm_gradient(
                rows, weight, means, scales, flat(gradient), centred=self.centred
            )
            found = {"weight": d_weight, "bias": d_bias}
            parameters = {name: found[name] for name in self.parameters}
            return StageGradients(d_x.reshape(x.shape), parameters)

        return out, pullback

    def initial_parameters(self, width: int, rng: np.random.Generator) -> dict[str, Array]:
        return {"weight": np.full(width, 1 - self.offset, np.float32)}

    def _apply(self, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        weight = self.parameters.cast("weight", x.dtype)
        if self.offset:
            weight = weight + x.dtype.type(self.offset)
        bias = self.parameters.cast("bias", x.dtype) if "bias" in self.parameters else None
        rows = flat(x)
        out, means, scales = layers.norm(rows, weight, bias, self.epsilon, centred=self.centred)
        return out.reshape(x.shape), rows, weight, means, scales


class LayerNorm(Norm):
    """(x − mean) / √(variance + ε) · weight + bias, over the width of a token.

    References
    ----------
    Ba et al., Layer normalization, arXiv:1607.06450.
    """

    centred = True

    def __init__(self, *, epsilon: float = 1e-5, bias: bool = True) -> None:
        super().__init__(epsilon=epsilon)
        self.bias = bool(bias)

    def initial_parameters(self, width: int, rng: np.random.Generator) -> dict[str, Array]:
        found = super().initial_parameters(width, rng)
        return {**found, "bias": np.zeros(width, np.float32)} if self.bias else found

    def options(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "bias": self.bias}


class RMSNorm(Norm):
    """x / √(mean of x² + ε) · (offset + weight), over the width of a token.

    With `offset` 1, as in Gemma, weights are stored as their difference from 1.

    References
    ----------
    Zhang and Sennrich, Root mean square layer normalization, arXiv:1910.07467.
    """

    centred = False

    def __init__(self, *, epsilon: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__(epsilon=epsilon, offset=offset)

    def options(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "offset": self.offset}


class Dropout(Stage):
    """While training, sets numbers to 0 with some probability and scales the others up."""

    kind: ClassVar[str] = "dropout"

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ArgumentError("probability", probability, "at least 0 and less than 1")
        self.probability = float(probability)

    def run(self, flow: Flow) -> Array:
        kept = self._kept(flow)
        return flow.stream if kept is None else flow.stream * kept

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        kept = self._kept(flow)
        if kept is None:
            return flow.stream, StageGradients
        return flow.stream * kept, lambda gradient: StageGradients(gradient * kept)

    def options(self) -> dict[str, Any]:
        return {"probability": self.probability}

    def _kept(self, flow: Flow) -> Array | None:
        if not flow.training or self.probability == 0:
            return None
        return dropped(flow, flow.stream, self.probability)


def dropped(flow: Flow, like: Array, probability: float) -> Array:
    """Factors of dropout: 0 or 1 / (1 − probability)."""
    if flow.rng is None:
        raise ArgumentError("rng", None, "a seed or a numpy.random.Generator, as dropout acts")
    kept = flow.rng.random(like.shape, np.float32) >= probability
    factors: Array = kept * like.dtype.type(1 / (1 - probability))
    return factors


class Residual(Stage):
    """Adds the stream as it was when it entered an earlier stage."""

    kind: ClassVar[str] = "residual"

    def __init__(self, start: int, scale: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(scale):
            raise ArgumentError("scale", scale, "a finite number")
        self.start, self.scale = start, float(scale)

    def run(self, flow: Flow) -> Array:
        stream, entered = flow.stream, flow.entries[self.start]
        return np.add(
            stream if self.scale == 1 else stream * stream.dtype.type(self.scale), entered
        )

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        def pullback(gradient: Array) -> StageGradients:
            scaled = gradient if self.scale == 1 else gradient * gradient.dtype.type(self.scale)
            return StageGradients(scaled, entries={self.start: gradient})

        return self.run(flow), pullback

    def options(self) -> dict[str, Any]:
        return {"start": self.start, "scale": self.scale}


Activation = Literal["relu", "gelu", "gelu-tanh", "silu"]


class FeedForward(Stage):
    """Two layers for each token: a(x Uᵀ + b) Dᵀ + c; gated: (a(x Gᵀ) ⊙ x Uᵀ) Dᵀ.

    The parameters are in torch's layout, (out, in): `up.weight` (hidden, width), `down.weight`
    (width, hidden), gated also `gate.weight`; with `bias` one vector each.

    References
    ----------
    Gated: Shazeer, GLU variants improve transformer, arXiv:2002.05202.
    """

    kind: ClassVar[str] = "feed-forward"

    def __init__(
        self, hidden: int, *, activation: Activation = "gelu", gated: bool = False,
        bias: bool = True, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(hidden, bool) or not isinstance(hidden, int | np.integer) or hidden < 1:
            raise ArgumentError("hidden", hidden, "a whole number of at least 1")
        if activation not in layers.ACTIVATIONS:
            raise ArgumentError("activation", activation, f"one of {', '.join(layers.ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ArgumentError("dropout", dropout, "at least 0 and less than 1")
        self.hidden, self.activation, self.gated = int(hidden), activation, bool(gated)
        self.bias, self.dropout = bool(bias), float(dropout)

    def run(self, flow: Flow) -> Array:
        if flow.training and self.dropout:
            return self.vjp(flow)[0]
        x = flat(flow.stream)
        first = "gate" if self.gated else "up"
        hidden = matmul(x, self._array(f"{first}.weight", x).T)
        shift = self._array(f"{first}.bias", x) if self.bias else None
        layers.activate(hidden, shift, self.activation, out=hidden)
        if self.gated:
            hidden *= self._affine("up", x)
        return self._affine("down", hidden).reshape(flow.stream.shape)

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        x = flat(flow.stream)
        first = "gate" if self.gated else "up"
        raw = matmul(x, self._array(f"{first}.weight", x).T)
        shift = self._array(f"{first}.bias", x) if self.bias else None
        active = layers.activate(raw, shift, self.activation)
        linear = self._affine("up", x) if self.gated else None
        hidden = active if linear is None else active * linear
        kept = None
        if flow.training and self.dropout:
            kept = dropped(flow, hidden, self.dropout)
            hidden = hidden * kept
        out = self._affine("down", hidden)

        def pullback(gradient: Array) -> StageGradients:
            found: dict[str, Array] = {}
            d_hidden = self._pulled_back("down", hidden, flat(gradient), found)
            if kept is not None:
                d_hidden *= kept
            d_active = d_hidden
            d_x: Array | float = 0.0
            if linear is not None:
                d_x = self._pulled_back("up", x, d_hidden * active, found)
                d_active = d_hidden * linear
            d_raw = layers.activation_gradient(raw, shift, self.activation, d_active)
            d_x = self._pulled_back(first, x, d_raw, found) + d_x
            parameters = {name: found[name] for name in self.parameters}
            return StageGradients(d_x.reshape(flow.stream.shape), parameters)

        return out.reshape(flow.stream.shape), pullback

    def initial_parameters(self, width: int, rng: np.random.Generator) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        shapes = {"up": (self.hidden, width), "down": (width, self.hidden)}
        if self.gated:
            shapes["gate"] = (self.hidden, width)
        for name, shape in shapes.items():
            bound = math.sqrt(6 / sum(shape))  # Glorot: keeps variances through the layers
            arrays[f"{name}.weight"] = rng.uniform(-bound, bound, shape).astype(np.float32)
            if self.bias:
                arrays[f"{name}.bias"] = np.zeros(shape[0], np.float32)
        return arrays

    def options(self) -> dict[str, Any]:
        return {
            "hidden": self.hidden, "activation": self.activation, "gated": self.gated,
            "bias": self.bias, "dropout": self.dropout,
        }  # fmt: skip

    def multiply_adds(self, tokens: int, keys: int, width: int) -> float | None:
        return float(tokens * width * self.hidden * (3 if self.gated else 2))

    def _array(self, name: str, like: Array) -> Array:
        return self.parameters.cast(name, like.dtype)

    def _affine(self, name: str, x: Array) -> Array:
        out = matmul(x, self._array(f"{name}.weight", x).T)
        if self.bias:
            out += self._array(f"{name}.bias", x)
        return out

    def _pulled_back(self, name: str, x: Array, gradient: Array, found: dict[str, Array]) -> Array:
        found[f"{name}.weight"] = matmul(gradient.T, x)
        if self.bias:
            found[f"{name}.bias"] = gradient.sum(axis=0)
        return matmul(gradient, self._array(f"{name}.weight", x))


class Function(Stage):
    """A function of the stream as a stage, without parameters."""

    kind: ClassVar[str] = "function"

    def __init__(
        self,
        function: Callable[[Array], Array],
        derivative: Callable[[Array, Array], Array] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.derivative = function, derivative

    def run(self, flow: Flow) -> Array:
        return np.asarray(self.function(flow.stream), flow.stream.dtype)

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        derivative, x = self.derivative, flow.stream
        if derivative is None:
            return super().vjp(flow)
        return self.run(flow), lambda gradient: StageGradients(derivative(x, gradient))
