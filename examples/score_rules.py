"""Scores of your own in `flash`: a line of Python, fused into its tiles and differentiated.

Each rule is compared with its closed form in NumPy, forward and, in a random direction, backward.
"""

import math

import numpy as np

import polyattn as pa


@pa.score_rule
def alibi(score, i, j, slope):
    """Nearer keys count for more; each head has a slope of its own."""
    return score - slope * abs(i - j)


@pa.score_rule
def tanh_cap(score, cap):
    """Scores saturate at ±cap."""
    return cap * math.tanh(score / cap)


@pa.score_rule
def relative_bias(score, h, i, j, table, offset):
    """A learned number for each head and distance."""
    return score + table[h, i - j + offset]


@pa.score_rule
def same_document(score, b, i, j, ids):
    """Packed texts do not see each other."""
    return score if ids[b, i] == ids[b, j] else -math.inf


@pa.score_rule(row=pa.squared_norm, column=pa.squared_norm)
def poincare(dot, row, column, sharpness):
    """Minus the distance in the Poincaré ball; `row` and `column` are |q|² and |k|²."""
    apart = max(row + column - 2 * dot, 1e-7)
    return -sharpness * math.acosh(1 + 2 * apart / ((1 - row) * (1 - column)))


BATCH, HEADS, TOKENS, SIZE = 2, 4, 150, 16
rng = np.random.default_rng(0)
query, key, value, incoming = rng.standard_normal((4, BATCH, HEADS, TOKENS, SIZE))
i, j = np.ogrid[:TOKENS, :TOKENS]

slopes = 2.0 ** -np.arange(1, HEADS + 1)
table = rng.standard_normal((HEADS, 2 * TOKENS - 1))
ids = np.sort(rng.integers(0, 3, (BATCH, TOKENS)))


def products(query, key):
    return query @ key.swapaxes(-1, -2) / np.sqrt(SIZE)


def poincare_distance(query, key):
    apart = ((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(-1)
    inside = (1 - (query**2).sum(-1))[..., :, None] * (1 - (key**2).sum(-1))[..., None, :]
    return np.arccosh(1 + 2 * apart / inside)


def masked(scores):
    same = ids[:, None, :, None] == ids[:, None, None, :]
    return np.where(same, scores, -np.inf)


# Rule, its parameters, other options, closed form of the scores, size of the vectors.
CASES = [
    (alibi, {"slope": slopes}, {},
     lambda q, k: products(q, k) - slopes[:, None, None] * abs(i - j), 1.0),
    (tanh_cap, {"cap": 3.0}, {}, lambda q, k: 3 * np.tanh(products(q, k) / 3), 1.0),
    (relative_bias, {"table": table, "offset": TOKENS - 1}, {},
     lambda q, k: products(q, k) + table[:, i - j + TOKENS - 1], 1.0),
    (same_document, {"ids": ids}, {}, lambda q, k: masked(products(q, k)), 1.0),
    (poincare, {"sharpness": 2.0}, {"scale": 1.0}, lambda q, k: -2 * poincare_distance(q, k), 0.1),
]  # fmt: skip


def softmax_average(scores, value):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


for rule, parameters, options, closed_form, length in CASES:
    attention = pa.create(
        "flash", dim=HEADS * SIZE, heads=HEADS, score=rule, score_params=parameters, **options
    )
    q, k = length * query, length * key
    output, pullback = attention.attend_vjp(q, k, value)
    expected = softmax_average(closed_form(q, k), value)
    assert np.allclose(output, expected, atol=1e-12)

    gradients = pullback(incoming)
    towards = 0.1 * length * rng.standard_normal(q.shape)
    ahead, behind = (
        (softmax_average(closed_form(q + s * towards, k - s * towards), value) * incoming).sum()
        for s in (1e-5, -1e-5)
    )
    slope = np.vdot(gradients.query, towards) - np.vdot(gradients.key, towards)
    assert np.isclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)
    learned = {name: array.shape for name, array in gradients.parameters.items()}
    print(f"{rule.name:14} largest difference {abs(output - expected).max():.0e}", learned)

try:
    pa.create("flash", dim=64, heads=4, score=relative_bias, score_params={"table": table})
except pa.errors.ConfigError as error:
    print("\nRefused:", error)
