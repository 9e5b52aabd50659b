"""What `auto` computes where it chooses soft-max attention, in plain NumPy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[Any]


def softmax_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """softmax(q·kᵀ/√d) v over the visible pairs."""
    key, value = repeat_heads(query, key, value)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown @ value / np.where(total == 0, 1, total))
