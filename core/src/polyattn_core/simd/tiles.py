"""The matrix products and the soft-max step on one tile.

Lanes are queries: scores are held as Sᵀ[key, query] and outputs as Oᵀ[d, query], so

    Sᵀ = K · Qᵀ        Oᵀ += Vᵀ · Pᵀ

K and V are only ever broadcast as scalars and need neither packing nor transposition, and the
statistics of a row are one vector lane: there are no horizontal reductions. A tile's statistics
are five rows of `queries` numbers in scratch memory:

====  =======================================================
row   content
====  =======================================================
0     running maximum of the scores
1     running denominator
2     factor by which the output so far has to be rescaled
3     maximum of this tile; −inf between tiles
4     running Σ eˢ⁻ᵐ (s − m) log₂e of the scores s and their maximum m, where the entropy is wanted
====  =======================================================
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

from . import target
from .tile_products import lane_product_of, score_product_of, value_product_of
from .tile_steps import exp_shifted_of, gradient_step_of, softmax_step_of, tile_maximum_of


@functools.cache
def tile_operations(dtype: str) -> SimpleNamespace:
    """The operations on a tile of this dtype, for use inside kernels."""
    tile = target.tile(dtype)
    return SimpleNamespace(
        score_product=score_product_of(tile),
        value_product=value_product_of(tile),
        lane_product=lane_product_of(tile),
        softmax_step=softmax_step_of(tile, entropy=False),
        entropy_step=softmax_step_of(tile, entropy=True),
        exp_shifted=exp_shifted_of(tile),
        gradient_step=gradient_step_of(tile),
        tile_maximum=tile_maximum_of(tile),
    )
