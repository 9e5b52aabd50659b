"""Random projections in the form in which kernels take them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import FavorConfig
from .reference import default_features, random_projection

Array = npt.NDArray[Any]


def draw(config: FavorConfig) -> Array:
    """The projections (features, head size), read-only."""
    count = config.features or default_features(config.head_dim)
    projection = random_projection(config.head_dim, count, config.seed, config.orthogonal)
    projection.flags.writeable = False
    return projection


def augmented(projection: Array, kind: str, scale: float) -> tuple[Array, float]:
    """Rows of which the product with (x, −scale·‖x‖²/2) is log φ(x), but for a constant; and that.

    The rows are those of √scale · (projection, or projection and −projection), with a 1 at the end.
    """
    rows = np.concatenate((projection, -projection)) if kind == "hyperbolic" else projection
    ones = np.ones((len(rows), 1))
    return np.concatenate((math.sqrt(scale) * rows, ones), axis=1), -math.log(len(rows)) / 2
