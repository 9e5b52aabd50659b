"""Random directions: orthogonal where there are no more than coordinates, in blocks beyond."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array


def unit_directions(count: int, size: int, rng: np.random.Generator) -> Array:
    """(count, size) unit vectors, uniform on the sphere each, orthogonal in blocks of `size`.

    Orthogonal directions see different things, so averages over them vary less than over
    independent ones.
    """
    blocks = []
    for _ in range(-(-count // size)):
        square, upper = np.linalg.qr(rng.standard_normal((size, size)))
        # Signs as in R of a unique factorisation, without which Q is not uniform.
        blocks.append((square * np.sign(np.diag(upper))).T)
    return np.ascontiguousarray(np.concatenate(blocks)[:count])


def normal_directions(count: int, size: int, rng: np.random.Generator) -> Array:
    """The same with the lengths of normally distributed vectors."""
    units = unit_directions(count, size, rng)
    return np.asarray(
        units * np.linalg.norm(rng.standard_normal((count, size)), axis=1, keepdims=True)
    )
