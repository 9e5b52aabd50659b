"""Kernels of attention with kernel features, and what launches them.

Everything is held with tokens in lanes: features Φᵀ[r, token], so that maxima and sums over
features are vertical, and neither queries nor keys nor values need a second transposition.
"""
