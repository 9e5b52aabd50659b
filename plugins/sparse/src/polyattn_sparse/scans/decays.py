"""What decays do to the pairs of tokens within a chunk.

A token j reaches a later token i through the decays of j + 1 … i. Their product is always built
from sums of logarithms over just these tokens, never as a quotient of two products from the start:
a quotient overflows where a gate forgets much, and is 0/0 where it forgets everything.

Arrays are (…, chunks, length, size), lengths are powers of 2.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Decays(Protocol):
    """Decays of some chunks.

    `before` (chunks, length, 1 or size) is the product up to a token, its own included, `after`
    that of the tokens behind it, `total` (chunks, 1 or size) that of the chunk.
    """

    before: Array | float
    after: Array | float
    total: Array | float

    def pairs(self, left: Array, right: Array) -> Array:
        """Σ_c leftᵢ_c rightⱼ_c · decay of c from j to i, for j ≤ i, otherwise 0."""

    def to_left(self, weights: Array, right: Array) -> Array:
        """The pullback of `pairs` to its first argument."""

    def to_right(self, weights: Array, left: Array) -> Array:
        """The pullback of `pairs` to its second argument."""


def decays_of(logarithms: Array | None) -> Decays:
    """From the logarithms (chunks, length, 1 or size) of the decays; without any, nothing decays.

    One number a token is cheaper than one a channel.
    """
    if logarithms is None:
        return _NoDecay()
    return (_DecayOfToken if logarithms.shape[-1] == 1 else _DecayOfChannels)(logarithms)


def suffix_sums(array: Array, axis: int) -> Array:
    """Sums from each place to the end."""
    return np.flip(np.cumsum(np.flip(array, axis), axis), axis)


def _t(array: Array) -> Array:
    return array.swapaxes(-1, -2)


class _NoDecay:
    before = after = total = 1.0

    def pairs(self, left: Array, right: Array) -> Array:
        return np.tril(left @ _t(right))

    def to_left(self, weights: Array, right: Array) -> Array:
        return np.tril(weights) @ right

    def to_right(self, weights: Array, left: Array) -> Array:
        return _t(np.tril(weights)) @ left


def _ends(logarithms: Array) -> tuple[Array, Array, Array]:
    """`before`, `after` and `total`."""
    before = np.exp(np.cumsum(logarithms, axis=-2))
    after = np.ones_like(logarithms)
    after[..., :-1, :] = np.exp(suffix_sums(logarithms[..., 1:, :], -2))
    return before, after, before[..., -1, :]


class _DecayOfToken:
    """One decay a token: a matrix of decays, lower triangular, times the matrix of products."""

    def __init__(self, logarithms: Array) -> None:
        self.before, self.after, self.total = _ends(logarithms)
        length = logarithms.shape[-2]
        # In column j, the sums of what lies behind j.
        behind = np.tril(np.ones((length, length), bool), -1)
        sums = np.cumsum(np.where(behind, logarithms, logarithms.dtype.type(0)), axis=-2)
        self._matrix = np.tril(np.exp(sums))

    def pairs(self, left: Array, right: Array) -> Array:
        found = left @ _t(right)
        found *= self._matrix
        return found

    def to_left(self, weights: Array, right: Array) -> Array:
        return np.asarray((weights * self._matrix) @ right)

    def to_right(self, weights: Array, left: Array) -> Array:
        return np.asarray(_t(weights * self._matrix) @ left)


class _DecayOfChannels:
    """A decay for each channel, by halving.

    Between the halves of a block the decay from j to i is that from j to the middle times that from
    the middle to i, both at most 1: a product of two scaled matrices. What is left are pairs within
    a half, down to single tokens.
    """

    def __init__(self, logarithms: Array) -> None:
        self.before, self.after, self.total = _ends(logarithms)
        # For each half length: decays from the first half's tokens to the middle, and onwards.
        self._levels: list[tuple[int, Array, Array]] = []
        *lead, length, size = logarithms.shape
        half = length // 2
        while half:
            halves = logarithms.reshape(*lead, length // (2 * half), 2, half, size)
            to_middle = np.ones_like(halves[..., 0, :, :])
            to_middle[..., :-1, :] = np.exp(suffix_sums(halves[..., 0, 1:, :], -2))
            onwards = np.exp(np.cumsum(halves[..., 1, :, :], axis=-2))
            self._levels.append((half, to_middle, onwards))
            half //= 2

    def pairs(self, left: Array, right: Array) -> Array:
        length = left.shape[-2]
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        found = np.zeros((*lead, length, length), left.dtype)
        _diagonal(found)[...] = (left * right).sum(axis=-1)
        for half, to_middle, onwards in self._levels:
            later = _halves(left, half)[..., 1, :, :] * onwards
            earlier = _halves(right, half)[..., 0, :, :] * to_middle
            _corners(found, half)[...] = later @ _t(earlier)
        return found

    def to_left(self, weights: Array, right: Array) -> Array:
        found = _diagonal(weights)[..., None] * right
        for half, to_middle, onwards in self._levels:
            earlier = _halves(right, half)[..., 0, :, :] * to_middle
            part = _corners(weights, half) @ earlier
            part *= onwards
            _halves(found, half)[..., 1, :, :] += part
        return found

    def to_right(self, weights: Array, left: Array) -> Array:
        found = _diagonal(weights)[..., None] * left
        for half, to_middle, onwards in self._levels:
            later = _halves(left, half)[..., 1, :, :] * onwards
            part = _t(_corners(weights, half)) @ later
            part *= to_middle
            _halves(found, half)[..., 0, :, :] += part
        return found


def _halves(array: Array, half: int) -> Array:
    """(…, length, size) as (…, blocks, 2, half, size), a view of contiguous memory."""
    *lead, length, size = array.shape
    return array.reshape(*lead, length // (2 * half), 2, half, size)


def _diagonal(matrix: Array) -> Array:
    """The diagonals of (…, length, length), a view."""
    return np.einsum("...ii->...i", matrix)


def blocks_on_diagonal(matrix: Array, size: int) -> Array:
    """(…, length, length) → (…, blocks, size, size), a view of contiguous memory."""
    *lead, length, _ = matrix.shape
    split = matrix.reshape(*lead, length // size, size, length // size, size)
    return np.einsum("...iaib->...iab", split)


def _corners(matrix: Array, half: int) -> Array:
    """Of each block on the diagonal the lower left quarter, a view."""
    return blocks_on_diagonal(matrix, 2 * half)[..., half:, :half]
