"""Search for the sharpness of a smoother on the validation part of a split.

All values lie on one lattice, ten to the power of eighths, so that the curves of several splits
share their points. Where to look is found from the data: only where the predictions react to the
sharpness at all, whatever its unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyattn_core.arrays import Array

STEPS = 8
"""Points of the lattice in a decade."""
REACH = 6
"""Decades, either way from what is natural for the data, where a reaction is looked for."""
COARSE = 4
EXTENSIONS = 8
"""Coarse steps by which a range is extended while the best value is its last one."""
FLAT = 1e-4
"""Improvements by less than this share of the curve's spread are none."""


@dataclass(slots=True)
class Search:
    """What a search found. `curve` maps sharpness to loss; lower is better."""

    value: float | None = None
    curve: dict[float, float] = field(default_factory=dict)
    on_border: bool = False
    reacts: bool = True
    """Predictions depend on the sharpness."""


def search(
    loss: Callable[[float], float],
    probe: Callable[[float], Array | None],
    whole: bool = False,
    unit: float = 1.0,
) -> Search:
    """The sharpness of least loss.

    Parameters
    ----------
    loss
        The loss at a sharpness; infinite where it is not admitted, or the output not finite.
    probe
        Predictions for a few queries at a sharpness; None where there are none.
    whole
        Only integers are admitted.
    unit
        A typical distance between queries and keys. Sharpness may be in units of its square
        (products), of itself, of their inverses, or without a unit (angles). Beyond what these
        suggest, predictions react to nothing but rounding.
    """
    found = Search()
    span = _reacting(probe, whole, unit)
    if span is None:
        found.reacts = False
        return found
    curve: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in curve:
            curve[index] = loss(_value(index, whole))
        return curve[index]

    first, last = span
    indices = _distinct(range(first, last + 1, COARSE), whole)
    best = _best(indices, [at(index) for index in indices])
    best, found.on_border = _extend(best, indices, at, curve, whole)
    for step in (COARSE // 2, COARSE // 4):
        best = min(_distinct([best, best - step, best + step], whole), key=at)
    found.curve = {_value(i, whole): curve[i] for i in sorted(curve) if math.isfinite(curve[i])}
    found.value = _value(best, whole) if math.isfinite(curve[best]) else None
    return found


def search_grid(loss: Callable[[float], float], grid: Sequence[int]) -> Search:
    """The value of least loss among given ones; the first of equal ones."""
    losses = [loss(value) for value in grid]
    best = int(np.argmin(losses))
    curve = {float(v): x for v, x in zip(grid, losses, strict=True) if math.isfinite(x)}
    # The first value (one neighbour) is no border: there is nothing beyond it.
    return Search(float(grid[best]), curve, best == len(grid) - 1)


def _value(index: int, whole: bool) -> float:
    value = 10.0 ** (index / STEPS)
    return float(round(value)) if whole else float(f"{value:.6g}")


def _distinct(indices: Sequence[int] | range, whole: bool) -> list[int]:
    """Without those that mean the same value, or none (an integer below 1)."""
    if not whole:
        return list(indices)
    seen: dict[float, int] = {}
    for index in indices:
        if _value(index, whole) >= 1:
            seen.setdefault(_value(index, whole), index)
    return list(seen.values())


def _reacting(
    probe: Callable[[float], Array | None], whole: bool, unit: float
) -> tuple[int, int] | None:
    """First and last index between which predictions change with the sharpness."""
    size = 2 * abs(math.log10(unit))
    reach = math.ceil(REACH + size)
    decades = range(0 if whole else -reach, reach + 1)
    seen = [probe(_value(STEPS * decade, whole)) for decade in decades]
    steps = [
        0.0 if a is None or b is None else float(np.abs(a - b).mean())
        for a, b in itertools.pairwise(seen)
    ]
    largest = max(steps)
    if largest < 1e-6:
        return None
    active = [number for number, step in enumerate(steps) if step > 0.02 * largest]
    return STEPS * decades[active[0]], STEPS * decades[active[-1] + 1]


def _best(indices: Sequence[int], losses: Sequence[float]) -> int:
    """Index of least loss; of those that are as good, that nearest to the middle of the range.

    Where the loss levels off, its least value may lie anywhere, even where weights underflow.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    slack = FLAT * (max(finite) - min(finite)) if finite else 0.0
    least = min(losses)
    middle = (indices[0] + indices[-1]) / 2
    good = [i for i, loss in zip(indices, losses, strict=True) if loss <= least + slack]
    return min(good, key=lambda index: abs(index - middle))


def _extend(
    best: int, indices: list[int], at: Callable[[int], float], curve: dict[int, float], whole: bool
) -> tuple[int, bool]:
    """Go on beyond the range while its last value is the best; True where that does not end."""
    for _ in range(EXTENSIONS):
        if best not in (min(indices), max(indices)):
            return best, False
        inner = best - COARSE if best == max(indices) else best + COARSE
        outer = 2 * best - inner
        if whole and _value(outer, whole) < 1:
            return best, False
        finite = [loss for loss in curve.values() if math.isfinite(loss)]
        if not finite:
            return best, False
        smallest_step = FLAT * (max(finite) - min(finite))
        if inner in curve and not curve[inner] - curve[best] > smallest_step:
            return best, False  # flat: the limit is reached
        indices.append(outer)
        if not math.isfinite(at(outer)):
            return best, True
        if at(outer) < curve[best] - smallest_step:
            best = outer
    return best, best in (min(indices), max(indices))
