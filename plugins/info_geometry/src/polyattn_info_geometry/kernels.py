"""Score rule of the Fisher–Rao distance, and products with the Fisher matrix row by row."""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types
from numba.extending import overload

from polyattn_core.simd.jit import OPTIONS, Kernel
from polyattn_core.simd.mathematics import exp, not_compiled
from polyattn_core.simd.rules import Statistic, score_rule
from polyattn_core.simd.scores import counter_type, take_task

ONE, TWO, HALF, ZERO = np.float32(1), np.float32(2), np.float32(0.5), np.float32(0)

# Taylor series of arcsin(z)/z in z²: (2k)! / (4^k (k!)² (2k + 1)). After one halving z² ≤ 0.147,
# where these many terms leave less than the last place.
_TERMS = {types.float32: 8, types.float64: 18}


def _series(count):
    terms, ratio = [], 1.0
    for k in range(count):
        terms.append(ratio / (2 * k + 1))
        ratio *= (2 * k + 1) / (2 * k + 2)
    return terms


angle = not_compiled("angle")
"""Arccosine of a number from −1 to 1, vectorising; what is outside counts as the border."""


@overload(angle, jit_options=OPTIONS)
def _angle(x):
    if x not in _TERMS:
        return None
    number = np.float32 if x is types.float32 else np.float64
    backwards = tuple(number(c) for c in _series(_TERMS[x])[::-1])
    top, rest = backwards[0], backwards[1:]
    zero, half, one, two, four, pi = (number(c) for c in (0, 0.5, 1, 2, 4, np.pi))

    def implementation(x):
        # arccos x = 2 arcsin √((1 − x)/2): no digits are lost near x = 1; and
        # arcsin z = 2 arcsin(z / √(2 (1 + √(1 − z²)))) halves the argument's range.
        size = abs(x)
        square = (one - size) * half
        square = zero if square < zero else square
        halved = square / (two * (one + np.sqrt(one - square)))
        series = top
        for coefficient in rest:
            series = series * halved + coefficient
        sharp = four * np.sqrt(halved) * series
        return pi - sharp if x < zero else sharp

    return implementation


@score_rule
def fisher_rao_score(cosine, sharpness):
    """−sharpness · 2 arccos(cosine)."""
    return -sharpness * (TWO * angle(cosine))


@fisher_rao_score.derivative
def fisher_rao_score_derivative(cosine, sharpness):
    # At cosine = ±1 the distance has a kink; the subgradient 0 is taken there.
    inside = ONE - cosine * cosine
    slope = TWO * sharpness / np.sqrt(inside) if inside > ZERO else ZERO
    return (slope, -TWO * angle(cosine))


def _negentropy(x):
    logs = np.log(x, out=np.zeros_like(x), where=x > 0)
    return np.einsum("...d,...d->...", x, logs)


def _negentropy_pullback(x, gradient):
    logs = np.log(x, out=np.zeros_like(x), where=x > 0)
    return (1 + logs) * gradient[..., None]


negentropy = Statistic("negentropy", _negentropy, _negentropy_pullback)
"""Σ x log x."""


@score_rule(row=negentropy)
def kl_score(dot, row, sharpness):
    """−sharpness · KL(p‖r) from Σ p log r and Σ p log p."""
    return sharpness * (dot - row)


@kl_score.derivative
def kl_score_derivative(dot, row, sharpness):
    return (sharpness, -sharpness, dot - row)


APPLY, SOLVE, DIAGONAL = 0, 1, 2


def _product(
    kind, from_logits, first, second, damping, eps, factor, rows_a_task, out, sums, counter
):
    """Rows of F v, of (F + λI)⁻¹ v, or of v over the diagonal; first + factor · that if asked.

    `first` holds probabilities, or logits of which the soft-max is taken; `out` is then
    first + factor · product. `sums` receives Σ p of each row, −inf where one is negative.
    """
    rows, size = second.shape
    tasks = (rows + rows_a_task - 1) // rows_a_task
    one, zero = factor.dtype.type(1), factor.dtype.type(0)
    lam, least, step = damping[0], eps[0], factor[0]
    while True:
        task = take_task(counter)
        if task >= tasks:
            break
        for i in range(task * rows_a_task, min(rows, (task + 1) * rows_a_task)):
            peak = first[i, 0]
            total = one
            if from_logits:
                for j in range(size):
                    peak = first[i, j] if first[i, j] > peak else peak
                total = zero
                for j in range(size):
                    weight = exp(first[i, j] - peak)
                    out[i, j] = weight
                    total += weight
                sums[i] = one
            else:
                found, low = zero, one
                for j in range(size):
                    p = first[i, j]
                    out[i, j] = p
                    found += p
                    low = p if p < low else low
                sums[i] = found if low >= zero else -np.inf
            inverse = one / total
            a, b = zero, zero
            if kind == 0:
                for j in range(size):
                    a += out[i, j] * second[i, j]
                a *= inverse
            elif kind == 1 and lam == zero:
                # P diag(1/p) P v: two means.
                for j in range(size):
                    a += second[i, j]
                a /= size
                for j in range(size):
                    p = out[i, j] * inverse
                    quotient = (second[i, j] - a) / (p if p > least else least)
                    out[i, j] = quotient
                    b += quotient
                b /= size
            elif kind == 1:
                # Sherman and Morrison, with 1 − Σ p²/(p + λ) = λ Σ p/(p + λ).
                for j in range(size):
                    share = out[i, j] * inverse / (out[i, j] * inverse + lam)
                    a += share * second[i, j]
                    b += share
                a /= lam * b
            for j in range(size):
                p, v = out[i, j] * inverse, second[i, j]
                if kind == 0:
                    found = p * (v - a)
                elif kind == 1 and lam == zero:
                    found = out[i, j] - b
                elif kind == 1:
                    found = (v + p * a) / (p + lam)
                else:
                    bottom = p * (one - p) + lam
                    found = v / (bottom if bottom > least else least)
                out[i, j] = first[i, j] + step * found if from_logits else found


@functools.cache
def fisher_kernel(dtype):
    """The kernel for float32 or float64."""
    number = types.float32 if dtype == "float32" else types.float64
    matrix, vector = types.Array(number, 2, "C", readonly=True), number[::1]
    integer = types.int64
    signature = types.void(
        integer, types.boolean, matrix, matrix, vector, vector, vector, integer, number[:, ::1],
        vector, counter_type(),
    )  # fmt: skip
    return Kernel(_product, signature, dtype)
