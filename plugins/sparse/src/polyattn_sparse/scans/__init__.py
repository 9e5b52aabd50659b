"""Recurrences with a matrix as state: S ← decay · S + k uᵀ, read by queries.

`decays` holds what forgetting does within a chunk, `engine` the chunked scan and its gradient,
`state` the explicit state, and `mechanisms` the five rules.
"""
