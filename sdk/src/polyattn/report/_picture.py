"""The vectors of a report in the plane of their two main components, as SVG."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array

_WIDE, _HIGH, _MARGIN = 620, 420, 14
POINTS = 1500
"""Points drawn at most: a page stays small."""


def picture(vectors: Array) -> str:
    """A scatter of the vectors, or of a sample of them, with a caption."""
    count = len(vectors)
    drawn = vectors
    if count > POINTS:
        drawn = vectors[np.random.default_rng(0).choice(count, POINTS, replace=False)]
    places, explained = _main_plane(drawn)
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    scale = min(
        (side - 2 * _MARGIN) / extent if extent > 0 else np.inf
        for side, extent in zip((_WIDE, _HIGH), span, strict=True)
    )
    scale = scale if np.isfinite(scale) else 1.0
    # In the middle, with y upwards, and the same unit along both axes: shapes keep their form.
    middle = low + span / 2
    x = _WIDE / 2 + scale * (places[:, 0] - middle[0])
    y = _HIGH / 2 - scale * (places[:, 1] - middle[1])
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in zip(x, y, strict=True))
    of = f"{len(drawn):,} of {count:,} vectors" if count > POINTS else f"{count:,} vectors"
    caption = f"{of} along their two main components, which hold {explained:.0%} of the variance"
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" height="{_HIGH}" role="img" '
        f'aria-label="{caption}"><g class="dots">{dots}</g></svg><p class="dim">{caption}.</p>'
    )


def _main_plane(vectors: Array) -> tuple[Array, float]:
    """Coordinates (n, 2) along the two main components, and their share of the variance."""
    centred = vectors - vectors.mean(axis=0)
    if centred.shape[1] == 1:
        centred = np.pad(centred, ((0, 0), (0, 1)))
    variances, axes = np.linalg.eigh(centred.T @ centred)
    total = float(variances.sum())
    share = float(variances[-2:].sum()) / total if total > 0 else 1.0
    return np.asarray(centred @ axes[:, :-3:-1]), share
