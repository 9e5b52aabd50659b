"""Sizes of the calls that checks make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Lead = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one call at head level."""

    queries: int = 5
    keys: int = 7
    size: int = 4
    value_size: int = 3
    heads: int = 2
    key_heads: int = 2
    query_lead: Lead = (2,)
    key_lead: Lead = (2,)
    value_lead: Lead = (2,)

    @property
    def lead(self) -> Lead:
        """The leading axes of the output."""
        return np.broadcast_shapes(self.query_lead, self.key_lead, self.value_lead)

    def __str__(self) -> str:
        lead = f"{self.query_lead}"
        if not self.query_lead == self.key_lead == self.value_lead:
            lead += f", {self.key_lead}, {self.value_lead}"
        return (
            f"{self.queries} queries, {self.keys} keys, {self.heads} heads of size {self.size} "
            f"on {self.key_heads}, values of size {self.value_size}, leading axes {lead}"
        )


def leading(*lead: int, **others: int) -> Sizes:
    """Sizes with the same leading axes everywhere."""
    return replace(Sizes(query_lead=lead, key_lead=lead, value_lead=lead), **others)  # type: ignore[arg-type]


PLAIN = Sizes()

AWKWARD = (
    leading(queries=1, keys=1, size=1, value_size=1, heads=1, key_heads=1),
    leading(1, queries=2, keys=1, size=3, value_size=2, heads=1, key_heads=1),
    leading(1, queries=1, keys=2, size=8, value_size=1),
    leading(queries=63, keys=64, size=3, value_size=8, heads=1, key_heads=1),
    leading(queries=64, keys=65, size=1, value_size=65, heads=1, key_heads=1),
    leading(queries=65, keys=63, size=65, value_size=3, heads=1, key_heads=1),
    leading(1, queries=130, keys=2, size=8, value_size=8),
    leading(2, queries=2, keys=130, size=8, value_size=9),
    leading(1, queries=65, keys=130, size=16, value_size=17, heads=3, key_heads=3),
)
"""Around the borders of tiles and vectors: 1, 2, 63, 64, 65 and 130 tokens, sizes 1, 3, 8, 65."""

GROUPED = (
    leading(2, queries=5, keys=7, heads=4, key_heads=2),
    leading(1, queries=66, keys=65, size=8, value_size=5, heads=3, key_heads=1),
)
"""Fewer key heads than query heads."""

LEADING = (
    leading(),
    leading(1),
    leading(3, 1),
    leading(1, 2, 2),
    replace(PLAIN, query_lead=(2, 1), key_lead=(3,), value_lead=()),
    replace(PLAIN, query_lead=(), key_lead=(2, 1), value_lead=(1, 3)),
    replace(PLAIN, query_lead=(1,), key_lead=(2,), value_lead=(1,), key_heads=1),
)
"""None, one, several, and some that broadcast."""
