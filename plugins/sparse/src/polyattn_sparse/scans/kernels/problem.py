"""What a scan is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import threads

Array = npt.NDArray[Any]

_SMALL = 1 << 21  # multiply-adds below which starting another thread costs more than it saves


@dataclass(slots=True)
class Problem:
    """One scan. `units` are batch × heads that have a state of their own."""

    query: Array
    """(batch, heads, group, tokens, size): `group` query heads read one state."""
    key: Array
    """(batch, heads, tokens, size)."""
    value: Array
    """(batch, heads, tokens, value size)."""
    logarithms: Array | None
    """Of the decays: (batch, heads, tokens, 1 or size)."""
    beta: Array | None
    """(batch, heads, tokens, 1)."""
    state: Array | None
    """At the start, (batch, heads, size, value size)."""
    length: int = 64
    """Tokens of a chunk, a power of 2."""
    limit: int | None = None
    """Threads that may be used."""

    @property
    def units(self) -> tuple[int, int]:
        """Batch and heads."""
        return self.key.shape[0], self.key.shape[1]

    def workers(self) -> int:
        """Threads that the work is worth."""
        group, tokens, size = self.query.shape[2:]
        width = self.value.shape[-1]
        work: int = self.units[0] * self.units[1] * (group + 1) * tokens * width * size
        return 1 if work < _SMALL else int(min(self.limit or threads.limit(), threads.limit()))

    def output(self) -> Array:
        """Memory for the output."""
        batch, heads, group, tokens, _ = self.query.shape
        # Written as (…, tokens, heads, size), so that merging heads afterwards is a view.
        shape = (batch, tokens, heads, group, self.value.shape[-1])
        return np.empty(shape, self.key.dtype).transpose(0, 2, 3, 1, 4)

    def start(self) -> Array:
        """A copy of the state at the start."""
        shape = (*self.units, self.key.shape[-1], self.value.shape[-1])
        return np.zeros(shape, self.key.dtype) if self.state is None else self.state.copy()
