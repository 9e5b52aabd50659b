"""The base class of masks and their combinations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MaskError
from .program import MaskShape, Primitive, Program

BoolArray = npt.NDArray[np.bool_]


class Mask:
    """Which keys a query may see. Immutable; combine with ``&``, ``|`` and ``~``."""

    __slots__ = ()

    kind: str = ""
    """The name under which mechanisms declare that they honour it; see ``spec.MASK_KINDS``."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all masks in this expression."""
        return frozenset((self.kind,))

    def program(self, shape: MaskShape) -> Program:
        """Lower to a postfix program for a call of this shape."""
        raise TypeError(f"{type(self).__name__} does not define program()")

    def dense(self, shape: MaskShape) -> BoolArray:
        """The boolean array (batch, heads, queries, keys) that this mask stands for.

        Takes queries × keys memory: for tests and for looking at small masks.
        """
        allowed = np.broadcast_to(
            self._allowed(shape), (shape.batch, shape.heads, shape.queries, shape.keys)
        )
        return np.array(allowed)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        raise TypeError(f"{type(self).__name__} does not define _allowed()")

    def __and__(self, other: object) -> Mask:
        return And(_operands(And, self, other)) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: object) -> Mask:
        return Or(_operands(Or, self, other)) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> Mask:
        return self.operand if isinstance(self, Not) else Not(self)


def _operands(kind: type[And] | type[Or], *masks: Any) -> tuple[Mask, ...]:
    flat: list[Mask] = []
    for mask in masks:
        flat.extend(mask.operands if isinstance(mask, kind) else (mask,))
    return tuple(flat)


def _check_operands(operands: tuple[Mask, ...]) -> None:
    if not operands:
        raise MaskError("operands", operands, "at least one mask")
    for operand in operands:
        if not isinstance(operand, Mask):
            raise MaskError("operands", operand, "masks")


class _Combination(Mask):
    __slots__ = ()
    operands: tuple[Mask, ...]

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset().union(*(operand.kinds for operand in self.operands))

    def _program(self, shape: MaskShape, kind: str) -> Program:
        steps = [step for operand in self.operands for step in operand.program(shape)]
        return (*steps, Primitive(kind, (len(self.operands),)))


@dataclass(frozen=True, slots=True)
class And(_Combination):
    """Visible where every operand allows it."""

    operands: tuple[Mask, ...]

    def __post_init__(self) -> None:
        _check_operands(self.operands)

    def program(self, shape: MaskShape) -> Program:
        return self._program(shape, "and")

    def _allowed(self, shape: MaskShape) -> BoolArray:
        allowed = self.operands[0]._allowed(shape)
        for operand in self.operands[1:]:
            allowed = allowed & operand._allowed(shape)
        return allowed

    def __repr__(self) -> str:
        return " & ".join(
            f"({operand!r})" if isinstance(operand, Or) else repr(operand)
            for operand in self.operands
        )


@dataclass(frozen=True, slots=True)
class Or(_Combination):
    """Visible where any operand allows it."""

    operands: tuple[Mask, ...]

    def __post_init__(self) -> None:
        _check_operands(self.operands)

    def program(self, shape: MaskShape) -> Program:
        return self._program(shape, "or")

    def _allowed(self, shape: MaskShape) -> BoolArray:
        allowed = self.operands[0]._allowed(shape)
        for operand in self.operands[1:]:
            allowed = allowed | operand._allowed(shape)
        return allowed

    def __repr__(self) -> str:
        return " | ".join(repr(operand) for operand in self.operands)


@dataclass(frozen=True, slots=True)
class Not(Mask):
    """Visible where the operand does not allow it."""

    operand: Mask

    @property
    def kinds(self) -> frozenset[str]:
        return self.operand.kinds

    def program(self, shape: MaskShape) -> Program:
        return (*self.operand.program(shape), Primitive("not", (1,)))

    def _allowed(self, shape: MaskShape) -> BoolArray:
        return ~self.operand._allowed(shape)

    def __repr__(self) -> str:
        inner = repr(self.operand)
        return f"~({inner})" if isinstance(self.operand, _Combination) else f"~{inner}"
