"""The form in which masks reach kernels: a postfix program of a few primitives.

==========  =======================  ========================================================
kind        integers                 key j is visible to query i of batch b, head h iff
==========  =======================  ========================================================
band        low, high                i + low ≤ j ≤ i + high
below                                j < table[b]
equal                                table[b, i] = table[b, queries + j]
keys                                 table[b, j] ≠ 0
queries                              table[b, i] ≠ 0
modulo      step, shift              (i + shift − j) mod step = 0
blocks      rows, columns            table[b, h, i // rows, j // columns] ≠ 0
dense                                table[b, h, i, j] ≠ 0
predicate   address                  the compiled predicate says so
and, or     number of operands       all, any of the operands before
not                                  the operand before does not
==========  =======================  ========================================================

Tables have length 1 along axes that they do not depend on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MaskError

Table = npt.NDArray[Any]

FAR = 1 << 40
"""Further than any two positions are apart."""


@dataclass(frozen=True, slots=True)
class MaskShape:
    """The sizes of the call that a mask is lowered for."""

    lead: tuple[int, ...]
    heads: int
    queries: int
    keys: int

    @property
    def batch(self) -> int:
        """Number of elements of the leading axes."""
        return math.prod(self.lead)


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """One step of a mask program."""

    kind: str
    integers: tuple[int, ...] = ()
    table: Table | None = field(default=None)
    keep: Any = None
    """Something that must outlive the program, such as compiled code."""


Program = tuple[Primitive, ...]


def per_batch(values: Table, shape: MaskShape, axes: int, argument: str) -> Table:
    """`values` (…, *axes) with its leading axes broadcast to the call's and flattened."""
    own = values.shape[: values.ndim - axes]
    tail = values.shape[values.ndim - axes :]
    if math.prod(own) == 1:
        return values.reshape((1, *tail))
    try:
        full = np.broadcast_to(values, shape.lead + tail)
    except ValueError:
        raise MaskError(
            argument, values.shape, f"leading axes that broadcast to {shape.lead}"
        ) from None
    return full.reshape((shape.batch, *tail))
