"""Score rule of compressed weights."""

from __future__ import annotations

from polyattn_core.simd.rules import score_rule


@score_rule
def tempered(score, factor):
    """factor · score."""
    return factor * score


@tempered.derivative
def tempered_derivative(score, factor):
    return (factor, score)
