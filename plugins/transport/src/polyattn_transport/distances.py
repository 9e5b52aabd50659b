"""Transport distances between point clouds, and Sinkhorn's algorithm, as functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, DataError, ShapeError

from .directions import unit_directions


def wasserstein_1d(
    x: Any, y: Any, *, x_weights: Any = None, y_weights: Any = None, power: float = 2.0
) -> Array:
    """Wasserstein distances on the line, exactly: Wₚ = (∫₀¹ |F⁻¹(u) − G⁻¹(u)|ᵖ du)^(1/p).

    Parameters
    ----------
    x, y
        (…, n) and (…, m) numbers; leading axes broadcast.
    x_weights, y_weights
        Masses, which broadcast to x and y and are made to sum to 1; equal ones by default.
    power
        p ≥ 1.

    Returns
    -------
    (…) distances. O((n + m) log (n + m)) time.

    Raises
    ------
    ArgumentError, ShapeError, DataError
        For powers below 1, masses that are negative or sum to 0, empty or infinite numbers.

    Examples
    --------
    >>> float(wasserstein_1d([0.0, 1.0], [3.0, 2.0]))
    2.0
    """
    first, second = _numbers(x, "x", 1), _numbers(y, "y", 1)
    _check_power(power)
    x_sorted, x_ends = _quantiles(first, x_weights, "x_weights")
    y_sorted, y_ends = _quantiles(second, y_weights, "y_weights")
    lead = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    x_sorted, x_ends, y_sorted, y_ends = (
        np.broadcast_to(a, (*lead, a.shape[-1])).reshape(-1, a.shape[-1])
        for a in (x_sorted, x_ends, y_sorted, y_ends)
    )
    total = np.empty(len(x_sorted))
    for row in range(len(total)):
        ends = np.sort(np.concatenate((x_ends[row], y_ends[row])))
        widths = np.diff(ends, prepend=0.0)
        # In the middle of each piece, so that rounding of the ends chooses no wrong number.
        middle = ends - widths / 2
        s = np.minimum(np.searchsorted(x_ends[row], middle), x_sorted.shape[-1] - 1)
        t = np.minimum(np.searchsorted(y_ends[row], middle), y_sorted.shape[-1] - 1)
        total[row] = (widths * np.abs(x_sorted[row, s] - y_sorted[row, t]) ** power).sum()
    return np.asarray(total ** (1 / power)).reshape(lead)


def sliced_wasserstein_distance(
    x: Any, y: Any, *, projections: int = 128, power: float = 2.0, seed: int = 0,
    directions: Any = None, x_weights: Any = None, y_weights: Any = None,
) -> float:  # fmt: skip
    """SWₚ = (mean over directions θ of Wₚᵖ(θ·x, θ·y))^(1/p) of two point clouds.

    Parameters
    ----------
    x, y
        (n, d) and (m, d) points.
    projections, seed
        How many random directions, orthogonal in blocks of d, and their seed.
    power
        p ≥ 1.
    directions
        (projections, d) directions instead, of any lengths.
    x_weights, y_weights
        (n,) and (m,) masses, as in :func:`wasserstein_1d`.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> round(sliced_wasserstein_distance(x, x + [2.0, 0, 0], projections=3) * 3**0.5, 6)
    2.0
    """
    first, second = _numbers(x, "x", 2), _numbers(y, "y", 2)
    if first.shape[-1] != second.shape[-1]:
        raise ShapeError("y", second.shape, f"width {first.shape[-1]} like x")
    along = _directions(projections, first.shape[-1], seed) if directions is None else directions
    along = _numbers(along, "directions", 2)
    each = wasserstein_1d(
        (first @ along.T).T, (second @ along.T).T, power=power, x_weights=x_weights,
        y_weights=y_weights,
    )  # fmt: skip
    return float((each**power).mean() ** (1 / power))


@dataclass(frozen=True, slots=True)
class SinkhornResult:
    """A plan of entropic transport."""

    plan: Array
    """(n, m); its rows sum to a exactly, its columns to b within `error`."""
    cost: float
    """⟨C, P⟩, without the entropy."""
    row_potential: Array
    """(n,): P = exp((f + g − C)/ε)."""
    column_potential: Array
    iterations: int
    error: float
    """The largest deviation of a column's sum from b."""
    converged: bool


def sinkhorn(
    cost: Any, a: Any = None, b: Any = None, *, regularisation: float = 0.1,
    tolerance: float = 1e-9, max_iterations: int = 1000,
) -> SinkhornResult:  # fmt: skip
    """Entropic transport in the log domain.

        P = argmin ⟨C, P⟩ + ε Σ P (ln P − 1),   P1 = a,   Pᵀ1 = b

    Parameters
    ----------
    cost
        C (n, m), finite.
    a, b
        Masses of rows and columns, not negative, of equal sums; by default equal masses that sum
        to 1.
    regularisation
        ε > 0, in units of the cost.
    tolerance, max_iterations
        Iterations stop when no column's sum deviates by more, or after so many: look at
        `converged`.

    Examples
    --------
    >>> found = sinkhorn([[0.0, 1.0], [1.0, 0.0]], regularisation=0.05)
    >>> found.converged, round(found.cost, 6)
    (True, 0.0)
    """
    costs = _numbers(cost, "cost", 2)
    if not regularisation > 0:
        raise ArgumentError("regularisation", regularisation, "a number above 0")
    if max_iterations < 1:
        raise ArgumentError("max_iterations", max_iterations, "at least 1")
    rows, columns = _masses(a, costs.shape[0], "a"), _masses(b, costs.shape[1], "b")
    if abs(rows.sum() - columns.sum()) > 1e-9 * max(rows.sum(), 1):
        raise ArgumentError("b", f"masses that sum to {columns.sum():g}", f"a's sum {rows.sum():g}")
    scores = -costs / regularisation
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(rows), np.log(columns)
    g = np.where(columns > 0, 0.0, -np.inf)
    f = log_a - _log_sum_exp(scores + g, 1)
    error, done = np.inf, 0
    while done < max_iterations and error > tolerance:
        g = log_b - _log_sum_exp((scores + f[:, None]).T, 1)
        f = log_a - _log_sum_exp(scores + g, 1)
        done += 1
        error = float(np.abs(np.exp(scores + f[:, None] + g).sum(axis=0) - columns).max())
    plan = np.exp(scores + f[:, None] + g)
    return SinkhornResult(
        plan, float((plan * costs).sum()), regularisation * f, regularisation * g, done, error,
        error <= tolerance,
    )  # fmt: skip


def ot_distance(
    query: Any, key: Any, value: Any = None, *, projections: int = 64, samples: int = 2048,
    seed: int = 0,
) -> float:  # fmt: skip
    """How far keys are distributed from queries: 0 alike, towards 1 apart.

    This is the metric `ot-distance`:

        Σ_θ W₂²(θ·q, θ·k) ÷ Σ_θ E (θ·q − θ·k)²

    the sliced transport cost as a share of what pairing queries and keys at random would cost,
    E (θ·q − θ·k)² = (mean difference)² + both variances. No plan costs more than the random one, so
    the share is between 0 and 1; it does not change when queries and keys are scaled, moved or
    (for many directions) turned together. Two normal clouds a distance of Δ standard deviations
    apart in one dimension have Δ²/(Δ² + 2).

    Parameters
    ----------
    query, key
        (n, d), or head-level (…, heads, tokens, d): the mean over heads and leading axes, where
        fewer key heads are shared by query heads.
    value
        Not looked at: metrics are called with all three.
    projections, samples, seed
        Directions, and tokens that are drawn from each head where it has more:
        O(projections · samples log samples) time a head.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> ot_distance(x, x), round(ot_distance(x, x + 100), 2)
    (0.0, 1.0)
    """
    first, second = _numbers(query, "query", 2), _numbers(key, "key", 2)
    if first.shape[-1] != second.shape[-1]:
        raise ShapeError("key", second.shape, f"width {first.shape[-1]} like query {first.shape}")
    if first.ndim > 2 and second.ndim > 2 and second.shape[-3] != first.shape[-3]:
        if first.shape[-3] % second.shape[-3]:
            raise ShapeError(
                "key", second.shape, f"heads that divide the {first.shape[-3]} of query"
            )
        second = np.repeat(second, first.shape[-3] // second.shape[-3], axis=-3)
    rng = np.random.default_rng(seed)
    along = _directions(projections, first.shape[-1], seed).T
    first, second = _sampled(first, samples, rng) @ along, _sampled(second, samples, rng) @ along
    apart = wasserstein_1d(first.swapaxes(-1, -2), second.swapaxes(-1, -2)) ** 2
    moved = (first.mean(axis=-2) - second.mean(axis=-2)) ** 2
    random = moved + first.var(axis=-2) + second.var(axis=-2)
    total = random.sum(axis=-1)
    share = apart.sum(axis=-1) / np.where(total > 0, total, 1)
    return float(np.clip(share, 0, 1).mean())


def _sampled(array: Array, samples: int, rng: np.random.Generator) -> Array:
    if array.shape[-2] <= samples:
        return array
    return array[..., rng.choice(array.shape[-2], samples, replace=False), :]


def _directions(count: int, size: int, seed: int) -> Array:
    if count < 1:
        raise ArgumentError("projections", count, "at least 1")
    return unit_directions(count, size, np.random.default_rng(seed))


def _numbers(value: Any, argument: str, axes: int) -> Array:
    array = np.asarray(value, np.float64)
    if array.ndim < axes or 0 in array.shape:
        raise ShapeError(argument, array.shape, f"at least {axes} axes, none of them empty")
    if not np.isfinite(array).all():
        raise DataError(argument, "numbers that are not finite", "finite numbers")
    return array


def _check_power(power: float) -> None:
    if not power >= 1:
        raise ArgumentError("power", power, "at least 1")


def _masses(value: Any, count: int, argument: str) -> Array:
    if value is None:
        return np.full(count, 1 / count)
    array = _numbers(value, argument, 1)
    if array.shape != (count,):
        raise ShapeError(argument, array.shape, f"({count},)")
    if (array < 0).any() or array.sum() <= 0:
        raise ArgumentError(argument, value, "masses that are not negative, and not all 0")
    return array


def _quantiles(numbers: Array, weights: Any, argument: str) -> tuple[Array, Array]:
    """Sorted numbers, and the levels at which each of them ends."""
    count = numbers.shape[-1]
    if weights is None:
        return np.sort(numbers, axis=-1), np.arange(1, count + 1) / count
    masses = _numbers(weights, argument, 1)
    try:
        masses = np.broadcast_to(masses, numbers.shape)
    except ValueError:
        raise ShapeError(argument, masses.shape, f"a shape like {numbers.shape}") from None
    if (masses < 0).any() or (masses.sum(axis=-1) <= 0).any():
        raise ArgumentError(argument, weights, "masses that are not negative, and not all 0")
    order = np.argsort(numbers, axis=-1)
    ends = np.cumsum(np.take_along_axis(masses, order, axis=-1), axis=-1)
    return np.take_along_axis(numbers, order, axis=-1), ends / ends[..., -1:]


def _log_sum_exp(scores: Array, axis: int) -> Array:
    most = scores.max(axis=axis, keepdims=True)
    base = np.where(np.isneginf(most), 0, most)
    return np.asarray((base + np.log(np.exp(scores - base).sum(axis=axis, keepdims=True)))[:, 0])
