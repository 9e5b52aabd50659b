"""Kernels of what stands around attention in a network: norms and activations, row by row.

Memory moves once: the statistics of a row, its normalised form and its scaling are one pass over
lines that are in cache; a bias is added where the activation is computed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from . import threads
from .jit import WITHOUT_CALLS, Kernel
from .mathematics import exp, sigmoid, tanh
from .scores import counter_type, take_task

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu-tanh": 2, "silu": 3}
"""Names → what the kernels know them by."""

_BLOCK = 1 << 14  # numbers of a task: some tens of microseconds
_SMALL = 1 << 15  # numbers below which another thread costs more than it saves

# ln of erfc(z)·eᶻ²/t in t = 1 / (1 + z/2), relative error below 1.2e-7 for all z ≥ 0.
_ERFC = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398,
    1.48851587, -0.82215223, 0.17087277,
)  # fmt: skip


def normal_cdf(x: float) -> float:
    """Φ(x), for compiled code."""
    raise TypeError("normal_cdf is for code that Numba compiles")


@overload(normal_cdf, jit_options=WITHOUT_CALLS)
def _normal_cdf(x):  # type: ignore[no-untyped-def]
    if x is not types.float32:
        root = math.sqrt(0.5)
        return lambda x: 0.5 * math.erfc(-x * root)
    number = np.float32
    coefficients = tuple(number(c) for c in _ERFC[-2::-1])
    top, half, root = number(_ERFC[-1]), number(0.5), number(math.sqrt(0.5))
    zero, one = number(0), number(1)

    def implementation(x):  # type: ignore[no-untyped-def]
        z = abs(x) * root
        t = one / (one + half * z)
        series = top
        for coefficient in coefficients:
            series = series * t + coefficient
        tail = half * t * exp(series - z * z)
        return tail if x < zero else one - tail

    return implementation


def _matrix(dtype: str, *, written: bool) -> Any:
    return types.Array(numba.from_dtype(np.dtype(dtype)), 2, "C", readonly=not written)


def _vector(dtype: str, *, written: bool) -> Any:
    return types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C", readonly=not written)


@functools.cache
def _norm_kernel(dtype: str) -> Kernel:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)

    def norm(x, weight, bias, epsilon, centred, block, out, means, scales, counter):  # type: ignore[no-untyped-def]
        rows, width = x.shape
        inverse = one / number(width)
        shifted = bias.shape[0] > 0
        while True:
            first = take_task(counter) * block
            if first >= rows:
                break
            for row in range(first, min(first + block, rows)):
                mean = zero
                if centred:
                    for j in range(width):
                        mean += x[row, j]
                    mean *= inverse
                square = zero
                for j in range(width):
                    deviation = x[row, j] - mean
                    square += deviation * deviation
                scale = one / np.sqrt(square * inverse + epsilon)
                means[row], scales[row] = mean, scale
                if shifted:
                    for j in range(width):
                        out[row, j] = (x[row, j] - mean) * scale * weight[j] + bias[j]
                else:
                    for j in range(width):
                        out[row, j] = (x[row, j] - mean) * scale * weight[j]

    read, write = _matrix(dtype, written=False), _matrix(dtype, written=True)
    vector, column = _vector(dtype, written=False), _vector(dtype, written=True)
    kind = numba.from_dtype(np.dtype(dtype))
    signature = types.void(
        read,
        vector,
        vector,
        kind,
        types.boolean,
        types.int64,
        write,
        column,
        column,
        counter_type(),
    )
    return Kernel(norm, signature, dtype)


@functools.cache
def _norm_gradient_kernel(dtype: str) -> Kernel:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)

    def norm_gradient(  # type: ignore[no-untyped-def]
        x, weight, means, scales, gradient, centred, block, d_x, d_weight, d_bias, counter
    ):
        rows, width = x.shape
        inverse = one / number(width)
        while True:
            task = take_task(counter)
            first = task * block
            if first >= rows:
                break
            for row in range(first, min(first + block, rows)):
                mean, scale = means[row], scales[row]
                along, across = zero, zero
                for j in range(width):
                    unit = (x[row, j] - mean) * scale
                    g = gradient[row, j]
                    d_weight[task, j] += g * unit
                    d_bias[task, j] += g
                    along += g * weight[j] * unit
                    across += g * weight[j]
                along *= inverse
                across = across * inverse if centred else zero
                for j in range(width):
                    unit = (x[row, j] - mean) * scale
                    d_x[row, j] = scale * (gradient[row, j] * weight[j] - across - unit * along)

    read, write = _matrix(dtype, written=False), _matrix(dtype, written=True)
    vector = _vector(dtype, written=False)
    signature = types.void(
        read, vector, vector, vector, read, types.boolean, types.int64, write, write, write,
        counter_type(),
    )  # fmt: skip
    return Kernel(norm_gradient, signature, dtype)


@functools.cache
def _activation_kernel(dtype: str) -> Kernel:
    """Forward, and the derivative where asked for: out ← a(x + bias), or x ← g · a′(x + bias)."""
    number = np.dtype(dtype).type
    zero, half, one = number(0), number(0.5), number(1)
    density, root = number(1 / math.sqrt(2 * math.pi)), number(math.sqrt(2 / math.pi))
    cubic, thrice = number(0.044715), number(3 * 0.044715)

    def activation(x, bias, kind, backward, block, out, gradient, counter):  # type: ignore[no-untyped-def]
        rows, width = x.shape
        shifted = bias.shape[0] > 0
        while True:
            first = take_task(counter) * block
            if first >= rows:
                break
            for row in range(first, min(first + block, rows)):
                source = out[row]  # shifted in the output, which is in cache for what follows
                for j in range(width):
                    source[j] = x[row, j] + bias[j] if shifted else x[row, j]
                incoming = gradient[row]
                if kind == 0:
                    for j in range(width):
                        v = source[j]
                        live = one if v > zero else zero
                        # NaN passes: what is not a number must not look healthy.
                        shown = zero if v <= zero else v
                        source[j] = live * incoming[j] if backward else shown
                elif kind == 1 and backward:
                    for j in range(width):
                        v = source[j]
                        slope = normal_cdf(v) + v * density * exp(-half * v * v)
                        source[j] = incoming[j] * slope
                elif kind == 1:
                    for j in range(width):
                        v = source[j]
                        source[j] = v * normal_cdf(v)
                elif kind == 2:
                    for j in range(width):
                        v = source[j]
                        grown = tanh(root * (v + cubic * v * v * v))
                        inner = root * (one + thrice * v * v)
                        slope = half * (one + grown) + half * v * (one - grown * grown) * inner
                        source[j] = incoming[j] * slope if backward else half * v * (one + grown)
                else:
                    for j in range(width):
                        v = source[j]
                        share = sigmoid(v)
                        slope = share * (one + v * (one - share))
                        source[j] = incoming[j] * slope if backward else v * share

    read, write = _matrix(dtype, written=False), _matrix(dtype, written=True)
    signature = types.void(
        read, _vector(dtype, written=False), types.int64, types.boolean, types.int64, write, read,
        counter_type(),
    )  # fmt: skip
    return Kernel(activation, signature, dtype)


def _share(x: Any, limit: int | None) -> tuple[int, int, int]:
    """Rows of a task, tasks, threads."""
    rows, width = x.shape
    block = max(1, _BLOCK // width)
    tasks = -(-rows // block)
    most = threads.limit()
    return block, tasks, 1 if rows * width < _SMALL else min(limit or most, most)


def _frozen(array: Any) -> Any:
    """A read-only view: kernels are compiled once, for inputs that they cannot write to."""
    view = array.view()
    view.flags.writeable = False
    return view


def norm(
    x: Any, weight: Any, bias: Any, epsilon: float, *, centred: bool, limit: int | None = None
) -> tuple[Any, Any, Any]:
    """(x − mean) / √(variance + ε) · weight + bias along the last axis of (rows, width).

    Not centred: x / √(mean square + ε) · weight. Also returns the means (0 if not centred) and
    the factors, which :func:`norm_gradient` takes.
    """
    out, rows = np.empty_like(x), len(x)
    means, scales = np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    shift = np.empty(0, x.dtype) if bias is None else bias
    block, tasks, workers = _share(x, limit)
    arguments = (
        _frozen(x), _frozen(weight), _frozen(shift), x.dtype.type(epsilon), centred, block, out,
        means, scales,
    )  # fmt: skip
    threads.run(_norm_kernel(x.dtype.name).compile(), arguments, tasks, workers)
    return out, means, scales


def norm_gradient(
    x: Any, weight: Any, means: Any, scales: Any, gradient: Any, *, centred: bool,
    limit: int | None = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Gradients of :func:`norm` by x, weight and bias."""
    block, tasks, workers = _share(x, limit)
    block, tasks = max(block, -(-len(x) // 64)), min(tasks, 64)  # as many sums of the parameters
    d_x = np.empty_like(x)
    d_weight, d_bias = np.zeros((2, tasks, x.shape[1]), x.dtype)
    arguments = (
        *(_frozen(a) for a in (x, weight, means, scales, gradient)), centred, block, d_x, d_weight,
        d_bias,
    )  # fmt: skip
    threads.run(_norm_gradient_kernel(x.dtype.name).compile(), arguments, tasks, workers)
    return d_x, d_weight.sum(axis=0), d_bias.sum(axis=0)


def activate(x: Any, bias: Any, name: str, *, out: Any = None, limit: int | None = None) -> Any:
    """The activation of x + bias, (rows, width); `out` may be x."""
    return _activate(x, bias, name, None, np.empty_like(x) if out is None else out, limit)


def activation_gradient(
    x: Any, bias: Any, name: str, gradient: Any, *, limit: int | None = None
) -> Any:
    """`gradient` times the derivative of the activation at x + bias."""
    return _activate(x, bias, name, gradient, np.empty_like(x), limit)


def _activate(x: Any, bias: Any, name: str, gradient: Any, out: Any, limit: int | None) -> Any:
    block, tasks, workers = _share(x, limit)
    shift = np.empty(0, x.dtype) if bias is None else bias
    backward = gradient is not None
    arguments = (
        _frozen(x), _frozen(shift), ACTIVATIONS[name], backward, block, out,
        _frozen(gradient if backward else x),
    )  # fmt: skip
    threads.run(_activation_kernel(x.dtype.name).compile(), arguments, tasks, workers)
    return out


__all__ = [
    "ACTIVATIONS",
    "activate",
    "activation_gradient",
    "norm",
    "norm_gradient",
    "normal_cdf",
]
