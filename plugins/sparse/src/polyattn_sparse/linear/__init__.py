"""Attention with kernel features: softmax's exponential replaced by a product φ(q)·φ(k).

Sums over keys are then taken once, Σ φ(k) vᵀ, and each query reads them: linear time.
"""
