"""What decays do to the pairs of tokens within a chunk.

A token j reaches a later token i through the decays of j + 1 … i. Their product is always built
from sums of logarithms over just these tokens, never as a quotient of two products from the start:
a quotient overflows where a gate forgets much, and is 0/0 where it forgets everything.

Arrays are (…, chunks, length, size), lengths are powers of 2.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def _t(array: Array) -> Array:
    return array.swapaxes(-1, -2)


class _NoDecay:
    before: Array | float = 1.0
    after: Array | float = 1.0
    total: Array | float = 1.0

    def pairs(self, left: Array, right: Array) -> Array:
        return np.tril(left @ _t(right))

    def to_left(self, weights: Array, right: Array) -> Array:
        return np.tril(weights) @ right

    def to_right(self, weights: Array, left: Array) -> Array:
        return _t(np.tril(weights)) @ left


@dataclass(slots=True)
class _Level:
    """Between the halves of each block the decay from j to i is `onwards`ᵢ · `to_middle`ⱼ."""

    half: int
    to_middle: Array
    """(…, blocks, half, size): from the first half's tokens to its end."""
    onwards: Array
    """(…, blocks, half, size): up to the second half's tokens."""


class _Halving:
    """Products of decays over ever longer blocks, by doubling: sums of logarithms, no differences.

    Prefix sums of a block are those of its halves, the second raised by the total of the first.
    """

    def __init__(self, logarithms: Array) -> None:
        length = logarithms.shape[-2]
        upto = np.array(logarithms, order="C")  # from the block's start to a token, with its own
        behind = np.zeros_like(upto)  # of the tokens behind it, to the block's end
        self.levels: list[_Level] = []
        half = 1
        while half < length:
            starts, ends = _halves(upto, half), _halves(behind, half)
            first, second = starts[..., 0, :, :], starts[..., 1, :, :]
            self.levels.append(_Level(half, np.exp(ends[..., 0, :, :]), np.exp(second)))
            ends[..., 0, :, :] += second[..., -1:, :]
            second += first[..., -1:, :]
            half *= 2
        before = np.exp(upto)
        self.before: Array | float = before
        self.after: Array | float = np.exp(behind)
        self.total: Array | float = before[..., -1, :]


class _DecayOfToken(_Halving):
    """One decay a token: a matrix of decays, lower triangular, times the matrix of products."""

    def __init__(self, logarithms: Array) -> None:
        super().__init__(logarithms)
        length = logarithms.shape[-2]
        self._matrix = np.zeros((*logarithms.shape[:-1], length), logarithms.dtype)
        _diagonal(self._matrix)[...] = 1
        for level in self.levels:
            np.multiply(level.onwards, _t(level.to_middle), out=_corners(self._matrix, level.half))

    def pairs(self, left: Array, right: Array) -> Array:
        found = left @ _t(right)
        found *= self._matrix
        return found

    def to_left(self, weights: Array, right: Array) -> Array:
        return np.asarray((weights * self._matrix) @ right)

    def to_right(self, weights: Array, left: Array) -> Array:
        return np.asarray(_t(weights * self._matrix) @ left)


class _DecayOfChannels(_Halving):
    """A decay for each channel, by halving.

    Between the halves of a block both factors of the decay are at most 1, so that its pairs are a
    product of two scaled matrices. What is left are pairs within a half, down to single tokens.
    """

    def pairs(self, left: Array, right: Array) -> Array:
        length = left.shape[-2]
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        found = np.zeros((*lead, length, length), left.dtype)
        _diagonal(found)[...] = np.einsum("...d,...d->...", left, right)
        for level in self.levels:
            later = _halves(left, level.half)[..., 1, :, :] * level.onwards
            earlier = _halves(right, level.half)[..., 0, :, :] * level.to_middle
            _corners(found, level.half)[...] = later @ _t(earlier)
        return found

    def to_left(self, weights: Array, right: Array) -> Array:
        found = np.ascontiguousarray(_diagonal(weights)[..., None] * right)
        for level in self.levels:
            earlier = _halves(right, level.half)[..., 0, :, :] * level.to_middle
            part = _corners(weights, level.half) @ earlier
            part *= level.onwards
            _halves(found, level.half)[..., 1, :, :] += part
        return found

    def to_right(self, weights: Array, left: Array) -> Array:
        found = np.ascontiguousarray(_diagonal(weights)[..., None] * left)
        for level in self.levels:
            later = _halves(left, level.half)[..., 1, :, :] * level.onwards
            part = _t(_corners(weights, level.half)) @ later
            part *= level.to_middle
            _halves(found, level.half)[..., 0, :, :] += part
        return found


def _halves(array: Array, half: int) -> Array:
    """(…, length, size) as (…, blocks, 2, half, size), a view of contiguous memory."""
    *lead, length, size = array.shape
    return array.reshape(*lead, length // (2 * half), 2, half, size)


def _diagonal(matrix: Array) -> Array:
    """The diagonals of (…, length, length), a view."""
    view: Array = np.einsum("...ii->...i", matrix)
    return view


def blocks_on_diagonal(matrix: Array, size: int) -> Array:
    """(…, length, length) → (…, blocks, size, size), a view of contiguous memory."""
    *lead, length, _ = matrix.shape
    split = matrix.reshape(*lead, length // size, size, length // size, size)
    view: Array = np.einsum("...iaib->...iab", split)
    return view


def _corners(matrix: Array, half: int) -> Array:
    """Of each block on the diagonal the lower left quarter, a view."""
    return blocks_on_diagonal(matrix, 2 * half)[..., half:, :half]
