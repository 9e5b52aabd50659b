"""Recurrences with a matrix as state: S ← decay · S + k uᵀ, read by queries.

`retention`, `gated`, `delta` and `mamba` are the rules, on what `mechanism` does for all of them
with `gates` and an explicit `state`. `kernels.engine` runs them: `steps` token by token,
`chunks` in products of matrices with what `decays` does within each, and the gradient.
"""
