"""Positions: rotary embeddings of queries and keys, and biases that depend on the distance.

None of these is a mechanism: each combines with every mechanism whose rule allows it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from .config import Schema
from .errors import ArgumentError

Array = npt.NDArray[Any]

_SCALED, _KEPT = 1.0, {"turns": 4.0, "pairs": 32.0}
"""Turns of a pair in the tokens of training up to which, and from which, it is scaled and not."""


class Rope(Schema):
    """Rotary position embedding (arXiv:2104.09864): pairs of coordinates turn with the position.

    Pair p of a position n turns by n · base^(−2p/size).
    """

    kind: Literal["rope"] = "rope"
    base: float = Field(default=10_000.0, gt=1)
    """Wavelengths reach 2π·base."""
    interleaved: bool = False
    """Pair neighbouring coordinates, rather than coordinates half the size apart."""
    size: int | None = Field(default=None, ge=2, multiple_of=2)
    """Turn only the first coordinates of each head, so many; all by default."""
    factor: float = Field(default=1.0, ge=1)
    """Linear scaling: positions are divided by it (arXiv:2306.15595)."""
    trained: int | None = Field(default=None, ge=2)
    """Tokens that a model was trained on before it was scaled: pairs that turn often in so many are
    not divided by the factor, those that turn less than once are. All are divided by default."""
    ramp: Literal["turns", "pairs"] = "turns"
    """What is between, with `trained`: pairs of less than 4 turns in proportion to their turns, as
    for Llama 3.1; or those of less than 32 in proportion to their index, as for DeepSeek (YaRN,
    arXiv:2309.00071, whose temperature is the mechanism's `scale`)."""

    @model_validator(mode="after")
    def _check_ramp(self) -> Self:
        if self.ramp == "pairs" and self.trained is None:
            raise ValueError("ramp: needs trained=, the tokens in which turns are counted")
        return self

    def frequencies(self, size: int) -> Array:
        """Radians for each position, of the pairs of heads of this size."""
        turned = self.size or size
        frequency = self.base ** (-np.arange(0, turned, 2) / turned)
        if self.trained is None:
            return np.asarray(frequency / self.factor)
        most = _KEPT[self.ramp]
        if self.ramp == "turns":
            turns = self.trained * frequency / (2 * math.pi)
            kept = np.clip((turns - _SCALED) / (most - _SCALED), 0, 1)
        else:
            # The pair, rounded outwards, that turns so often, by solving for p in `frequency`.
            first, last = (
                turned / 2 * math.log(self.trained / (2 * math.pi * turns)) / math.log(self.base)
                for turns in (most, _SCALED)
            )
            first, last = max(math.floor(first), 0), min(math.ceil(last), turned - 1)
            kept = 1 - np.clip((np.arange(turned // 2) - first) / max(last - first, 1e-3), 0, 1)
        return np.asarray(frequency * (kept + (1 - kept) / self.factor))


class Alibi(Schema):
    """Attention with linear biases (arXiv:2108.12409): −slope · |distance|, one slope a head."""

    kind: Literal["alibi"] = "alibi"


class T5Bias(Schema):
    """Relative position bias of T5 (arXiv:1910.10683): a learned number for each distance bucket.

    The parameter `position.table` (heads, buckets) holds the numbers.
    """

    kind: Literal["t5"] = "t5"
    buckets: int = Field(default=32, ge=2)
    """Half of them for exact small distances, the others growing logarithmically."""
    max_distance: int = Field(default=128, ge=2)
    """Distances beyond share the last bucket."""
    bidirectional: bool = True
    """Buckets of their own for keys after the query; otherwise these share the first."""

    @model_validator(mode="after")
    def _check_distance(self) -> Self:
        exact = (self.buckets // 2 if self.bidirectional else self.buckets) // 2
        if self.max_distance <= exact:
            raise ValueError(f"max_distance: must exceed the {exact} exact distances")
        return self


Position = Annotated[Rope | Alibi | T5Bias, Field(discriminator="kind")]


def rotate(array: Array, positions: Array, rope: Rope, *, inverse: bool = False) -> Array:
    """Turn the pairs of coordinates of `array` (…, tokens, size) by their angles.

    `positions` (tokens) or broadcasting to (…, tokens). `inverse` turns back, which is also the
    pullback.
    """
    turned = rope.size or array.shape[-1]
    if turned % 2 or turned > array.shape[-1]:
        raise ArgumentError(
            "position.size", turned, f"an even number of at most the head size {array.shape[-1]}"
        )
    frequency = rope.frequencies(turned)
    angle = np.asarray(positions, float)[..., None] * (-frequency if inverse else frequency)
    cosine, sine = np.cos(angle).astype(array.dtype), np.sin(angle).astype(array.dtype)
    # In C order whatever that of the input is: kernels take the last axis to be contiguous.
    result = np.array(array, order="C")
    if rope.interleaved:
        first, second = slice(0, turned, 2), slice(1, turned, 2)
    else:
        first, second = slice(0, turned // 2), slice(turned // 2, turned)
    x, y = array[..., first], array[..., second]
    # What is behind a mask may be infinite, and stays there.
    with np.errstate(invalid="ignore"):
        result[..., first] = x * cosine - y * sine
        result[..., second] = x * sine + y * cosine
    return result


def alibi_slopes(heads: int) -> Array:
    """The paper's slopes: geometric from 2^(−8/heads); interpolated between powers of 2."""

    def sequence(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    whole = 2 ** math.floor(math.log2(heads))
    return np.array(sequence(whole) + sequence(2 * whole)[0::2][: heads - whole])


def distances(queries: int, keys: int) -> Array:
    """All distances key − query that occur, ascending: (queries + keys − 1,).

    With more keys than queries the last query is at the last key.
    """
    return np.arange(queries + keys - 1) - (keys - 1)


def t5_buckets(distance: Array, bias: T5Bias) -> Array:
    """The bucket of each distance key − query."""
    buckets = bias.buckets
    result = np.zeros(distance.shape, np.int64)
    if bias.bidirectional:
        buckets //= 2
        result += (distance > 0) * buckets
        size = np.abs(distance)
    else:
        size = np.maximum(-distance, 0)
    exact = buckets // 2
    with np.errstate(divide="ignore"):
        logarithmic = exact + (
            np.log(np.maximum(size, 1) / max(exact, 1))
            / math.log(bias.max_distance / max(exact, 1))
            * (buckets - exact)
        ).astype(np.int64)
    return result + np.where(size < exact, size, np.minimum(logarithmic, buckets - 1))
