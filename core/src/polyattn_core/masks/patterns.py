"""Masks that are functions of positions alone.

Where there are more keys than queries, as in decoding with a cache, positions have to be aligned:
``lower_right`` (the default) puts the last query at the last key, ``upper_left`` the first query
at the first key. With as many keys as queries both are the same.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import MaskError
from .algebra import BoolArray, Mask
from .program import FAR, MaskShape, Primitive, Program

Align = Literal["lower_right", "upper_left"]
_MOST_LISTED = 1 << 30  # keys of which a mask makes a table


def _check_table(kind: str, shape: MaskShape) -> None:
    """Refuse a table with an entry for each key where these are more than fit into memory."""
    if shape.keys > _MOST_LISTED:
        raise MaskError(
            "mask",
            f"a {kind} mask for {shape.keys} keys in all",
            f"at most {_MOST_LISTED}, as it lists them; causal, window, dilated and relative "
            "strided masks take any number",
        )


def _check_align(align: object) -> None:
    # Looked at first, as an array compares with everything and has no truth value.
    if not isinstance(align, str) or align not in ("lower_right", "upper_left"):
        raise MaskError("align", align, "'lower_right' or 'upper_left'")


def _check_count(argument: str, value: object, least: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= FAR:  # type: ignore[operator]
        also = " or None" if optional else ""
        raise MaskError(argument, value, f"a whole number from {least} to 2⁴⁰{also}")


def shift(align: Align, shape: MaskShape) -> int:
    """Key position of the first query."""
    return shape.keys - shape.queries if align == "lower_right" else 0


def _distance(align: Align, shape: MaskShape) -> Any:
    """Key position minus query position, (queries, keys)."""
    position = np.arange(shape.queries)[:, None] + shift(align, shape)
    return np.arange(shape.keys)[None, :] - position


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """A query sees keys up to its own position, plus `offset`."""

    align: Align = "lower_right"
    offset: int = 0

    kind = "causal"

    def __post_init__(self) -> None:
        _check_align(self.align)
        _check_count("offset", self.offset, -FAR)

    def program(self, shape: MaskShape) -> Program:
        return (Primitive("band", (-FAR, shift(self.align, shape) + int(self.offset))),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        return np.asarray(_distance(self.align, shape) <= self.offset)


@dataclass(frozen=True, slots=True)
class Window(Mask):
    """A query sees `left` keys before and `right` keys after its position, itself included.

    `None` leaves a side open.
    """

    left: int | None = None
    right: int | None = None
    align: Align = "lower_right"

    kind = "window"

    def __post_init__(self) -> None:
        _check_align(self.align)
        _check_count("left", self.left, 0, optional=True)
        _check_count("right", self.right, 0, optional=True)

    def program(self, shape: MaskShape) -> Program:
        start = shift(self.align, shape)
        low = -FAR if self.left is None else start - int(self.left)
        high = FAR if self.right is None else start + int(self.right)
        return (Primitive("band", (low, high)),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        distance = _distance(self.align, shape)
        allowed = np.ones(distance.shape, bool)
        if self.left is not None:
            allowed &= distance >= -self.left
        if self.right is not None:
            allowed &= distance <= self.right
        return allowed


@dataclass(frozen=True, slots=True)
class Dilated(Mask):
    """A query sees every `step`-th key, `left` of them before and `right` after its position."""

    step: int
    left: int | None = None
    right: int | None = None
    align: Align = "lower_right"

    kind = "dilated"

    def __post_init__(self) -> None:
        _check_align(self.align)
        _check_count("step", self.step, 1)
        _check_count("left", self.left, 0, optional=True)
        _check_count("right", self.right, 0, optional=True)

    def _window(self) -> Window:
        step = int(self.step)
        reach = [None if n is None else min(int(n) * step, FAR) for n in (self.left, self.right)]
        return Window(reach[0], reach[1], self.align)

    def program(self, shape: MaskShape) -> Program:
        start = shift(self.align, shape)
        return (
            *self._window().program(shape),
            Primitive("modulo", (int(self.step), start)),
            Primitive("and", (2,)),
        )

    def _allowed(self, shape: MaskShape) -> BoolArray:
        on_grid = _distance(self.align, shape) % self.step == 0
        return np.asarray(on_grid & self._window()._allowed(shape))


@dataclass(frozen=True, slots=True)
class Strided(Mask):
    """The two patterns of the sparse transformer, each the union of its two heads.

    ``strided``: the nearest `stride` − 1 keys on each side, and every `stride`-th key.
    ``fixed``: the keys of the query's own block of length `stride`, and the last `summary` keys of
    every block.

    References
    ----------
    Child et al., Generating long sequences with sparse transformers, arXiv:1904.10509.
    """

    stride: int
    pattern: Literal["strided", "fixed"] = "strided"
    summary: int = 1
    align: Align = "lower_right"

    kind = "strided"

    def __post_init__(self) -> None:
        _check_align(self.align)
        _check_count("stride", self.stride, 1)
        if not isinstance(self.pattern, str) or self.pattern not in ("strided", "fixed"):
            raise MaskError("pattern", self.pattern, "'strided' or 'fixed'")
        _check_count("summary", self.summary, 1)
        if self.summary > self.stride:
            raise MaskError("summary", self.summary, f"at most the stride {self.stride}")

    def program(self, shape: MaskShape) -> Program:
        start, stride = shift(self.align, shape), int(self.stride)
        if self.pattern == "strided":
            near = Primitive("band", (start - stride + 1, start + stride - 1))
            return (near, Primitive("modulo", (stride, start)), Primitive("or", (2,)))
        _check_table(self.kind, shape)
        keys = np.arange(shape.keys)
        blocks = np.concatenate(((np.arange(shape.queries) + start) // stride, keys // stride))
        summaries = (keys % stride >= stride - self.summary).astype(np.uint8)
        return (
            Primitive("equal", (), blocks[None].astype(np.int64)),
            Primitive("keys", (), summaries[None]),
            Primitive("or", (2,)),
        )

    def _allowed(self, shape: MaskShape) -> BoolArray:
        distance = _distance(self.align, shape)
        if self.pattern == "strided":
            return np.asarray((abs(distance) < self.stride) | (distance % self.stride == 0))
        position = np.arange(shape.queries)[:, None] + shift(self.align, shape)
        keys = np.arange(shape.keys)[None, :]
        own = position // self.stride == keys // self.stride
        return np.asarray(own | (keys % self.stride >= self.stride - self.summary))


@dataclass(frozen=True, slots=True)
class GlobalTokens(Mask):
    """Some positions see everything and are seen by everything.

    `positions` is a number of leading positions, or the positions themselves; negative ones count
    from the last key.
    """

    positions: int | tuple[int, ...]
    align: Align = "lower_right"

    kind = "global"

    def __post_init__(self) -> None:
        _check_align(self.align)
        if isinstance(self.positions, int | np.integer) and not isinstance(self.positions, bool):
            _check_count("positions", self.positions, 0)
            return
        try:
            positions = tuple(operator.index(p) for p in self.positions)  # type: ignore[union-attr]
        except TypeError:
            raise MaskError(
                "positions", self.positions, "a number of tokens, or a sequence of positions"
            ) from None
        object.__setattr__(self, "positions", positions)

    def _keys(self, shape: MaskShape) -> BoolArray:
        _check_table(self.kind, shape)
        chosen = np.zeros(shape.keys, bool)
        if isinstance(self.positions, tuple):
            for position in self.positions:
                if not -shape.keys <= position < shape.keys:
                    raise MaskError("positions", position, f"positions among the {shape.keys} keys")
                chosen[position] = True
        else:
            chosen[: self.positions] = True
        return chosen

    def _queries(self, shape: MaskShape) -> BoolArray:
        position = np.arange(shape.queries) + shift(self.align, shape)
        inside = (position >= 0) & (position < shape.keys)
        return inside & self._keys(shape)[np.clip(position, 0, shape.keys - 1)]

    def program(self, shape: MaskShape) -> Program:
        return (
            Primitive("keys", (), self._keys(shape).astype(np.uint8)[None]),
            Primitive("queries", (), self._queries(shape).astype(np.uint8)[None]),
            Primitive("or", (2,)),
        )

    def _allowed(self, shape: MaskShape) -> BoolArray:
        return np.asarray(self._queries(shape)[:, None] | self._keys(shape)[None, :])
