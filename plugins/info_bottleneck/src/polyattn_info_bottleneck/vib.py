"""Attention through codes of a variational information bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.partial import PartialState
from polyattn_core.products import matmul
from polyattn_core.streaming import StreamingMechanism

from .bottleneck import annealed
from .divergences import DiagonalGaussian, KLDivergence

_MEAN, _MEAN_BIAS = "encoder.mean.weight", "encoder.mean.bias"
_LOG_VAR, _LOG_VAR_BIAS = "encoder.log_var.weight", "encoder.log_var.bias"


class VIB(StreamingMechanism):
    """Queries find keys by short noisy codes, which cost what they tell.

        z(x) = W x + b,   σ²(k) = exp(A k + c)
        softmax(z(q) · (z(k) + σ(k) ε) / √z_dim) v

    where W, b, A, c are learned and shared by all heads: the parameters `encoder.mean.weight`
    (z_dim, head size), `encoder.mean.bias`, `encoder.log_var.weight`, `encoder.log_var.bias`. The
    side input `noise`, standard normal ε (…, key heads, keys, z_dim), is for training (see
    `draw_noise`); without it codes are their means. log σ² is clamped to [−20, 20].

    The loss of a training step is the task's, by `attend_vjp`, and β · KL(N(z, σ²)‖N(0, 1)) of the
    keys' codes, by `kl_vjp`, with β annealed over `anneal_steps`.

    O(n² z + n z d) time, O(n (z + d)) memory.

    References
    ----------
    Alemi et al., Deep variational information bottleneck, arXiv:1612.00410.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((5, 8))
    >>> vib = pa.create("vib", dim=8, z_dim=2)
    >>> noise = vib.draw_noise(x[None], rng=np.random.default_rng(1))
    >>> vib(x).shape, np.allclose(vib(x), vib(x, noise=noise))
    ((5, 8), False)
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        size, codes = self.config.head_dim, self.config.z_dim
        return {
            **super()._initial_parameters(rng),
            _MEAN: rng.standard_normal((codes, size)) / np.sqrt(size),
            _MEAN_BIAS: np.zeros(codes),
            _LOG_VAR: np.zeros((codes, size)),
            # Little noise at first: what does not pay gets noisier.
            _LOG_VAR_BIAS: np.full(codes, -2.0),
        }

    def encode(self, tokens: Any) -> DiagonalGaussian:
        """The codes (…, z_dim) of tokens (…, head size)."""
        array = as_array(tokens, "tokens")
        if array.ndim < 1 or array.shape[-1] != self.config.head_dim:
            raise ShapeError("tokens", array.shape, f"a last axis of {self.config.head_dim}")
        return self._encode(array.astype(compute_dtype(array.dtype, "tokens"), copy=False))

    def draw_noise(self, key: Any, rng: np.random.Generator) -> Array:
        """Noise for keys (…, key heads, keys, head size), from an explicit generator."""
        if not isinstance(rng, np.random.Generator):
            raise ArgumentError("rng", rng, "a numpy.random.Generator")
        array = as_array(key, "key")
        return rng.standard_normal((*array.shape[:-1], self.config.z_dim)).astype(array.dtype)

    def beta_at(self, step: int | None = None) -> float:
        """β at a training step; its final value where none is given."""
        return annealed(self.config.beta, self.config.anneal_steps, step)

    def kl_loss(self, key: Any, step: int | None = None) -> float:
        """β · KL of the keys' codes from N(0, 1), the mean over keys (…, head size)."""
        return self.beta_at(step) * float(KLDivergence.gaussian_to_unit(self.encode(key)).mean())

    def kl_vjp(self, key: Any, step: int | None = None) -> tuple[float, Array, dict[str, Array]]:
        """`kl_loss`, its gradient by the keys, and those by the parameters."""
        codes = self.encode(key)
        array = np.asarray(key, codes.mean.dtype)
        beta = self.beta_at(step)
        found = KLDivergence.gaussian_to_unit_gradient(codes)
        factor = beta * array.shape[-1] / array.size
        by_key, parameters = self._encoder_pullback(
            array, factor * found.mean, factor * found.log_var
        )
        loss = beta * float(KLDivergence.gaussian_to_unit(codes).mean())
        return loss, by_key, parameters

    # ---- attention over codes -------------------------------------------------------------------

    def _encode(self, x: Array) -> DiagonalGaussian:
        w, b, a, c = (
            self.parameters[name].astype(x.dtype)
            for name in (_MEAN, _MEAN_BIAS, _LOG_VAR, _LOG_VAR_BIAS)
        )
        return DiagonalGaussian(matmul(x, w.T) + b, matmul(x, a.T) + c)

    def _encoder_pullback(
        self, x: Array, by_mean: Array, by_log_var: Array
    ) -> tuple[Array, dict[str, Array]]:
        w, a = (self.parameters[name].astype(x.dtype) for name in (_MEAN, _LOG_VAR))
        # Hidden tokens have no gradient, and 0 · NaN must not make them one.
        live = np.any(by_mean, axis=-1, keepdims=True) | np.any(by_log_var, axis=-1, keepdims=True)
        rows = np.where(live, x, 0).reshape(-1, x.shape[-1])
        flat_mean, flat_log_var = (g.reshape(-1, g.shape[-1]) for g in (by_mean, by_log_var))
        return matmul(by_mean, w) + matmul(by_log_var, a), {
            _MEAN: matmul(flat_mean.T, rows),
            _MEAN_BIAS: flat_mean.sum(axis=0),
            _LOG_VAR: matmul(flat_log_var.T, rows),
            _LOG_VAR_BIAS: flat_log_var.sum(axis=0),
        }

    def _checked_side(self, side: Mapping[str, Any]) -> Mapping[str, Any]:
        checked = dict(super()._checked_side(side))
        if checked.get("noise") is not None:
            noise = as_array(checked["noise"], "noise")
            if noise.ndim < 3 or noise.shape[-1] != self.config.z_dim:
                wanted = f"(…, key heads, keys, {self.config.z_dim})"
                raise ShapeError("noise", noise.shape, wanted)
            checked["noise"] = noise
        return checked

    def _noise(self, call: Call) -> Array | None:
        noise = call.side.get("noise")
        if noise is None:
            return None
        # Of all keys, so that parts of them find their own.
        full = (*call.shape.lead, call.key.shape[1], call.shape.keys, self.config.z_dim)
        try:
            whole = np.broadcast_to(noise, full)
        except ValueError:
            raise ShapeError("noise", noise.shape, f"a shape that broadcasts to {full}") from None
        own = slice(call.key_start, call.key_start + call.key.shape[2])
        flat = whole.reshape((call.key.shape[0], *full[-3:]))[:, :, own]
        return flat.astype(call.dtype, copy=False)

    def _coded(self, call: Call) -> tuple[Call, DiagonalGaussian, Array | None]:
        keys, noise = self._encode(call.key), self._noise(call)
        with np.errstate(invalid="ignore", over="ignore"):
            code = keys.mean if noise is None else keys.sample(noise)
        query = self._encode(call.query).mean
        return replace(call, query=query, key=code, side={}), keys, noise

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._coded(call)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._coded(call)[0], wanted)

    def _partial(self, call: Call) -> PartialState:
        return super()._partial(self._coded(call)[0])

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        coded, keys, noise = self._coded(call)
        output, pull = super()._vjp(coded)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            by_mean, by_log_var = found.key, np.zeros_like(found.key)
            if noise is not None:
                live = np.any(found.key, axis=-1, keepdims=True)
                drawn = DiagonalGaussian(keys.mean, np.where(live, keys.log_var, 0))
                by_log_var = drawn.sample_pullback(noise, found.key).log_var
            d_key, of_keys = self._encoder_pullback(call.key, by_mean, by_log_var)
            d_query, of_queries = self._encoder_pullback(
                call.query, found.query, np.zeros_like(found.query)
            )
            learned = {name: of_keys[name] + of_queries[name] for name in of_keys}
            return Gradients(
                d_query, d_key, found.value, found.bias, {**found.parameters, **learned}
            )

        return output, pullback
