"""Attention in hyperbolic space: Poincaré distances, Lorentz inner products, products of spaces.

Importing this package imports nothing else; the manifest is :mod:`polyattn_hyperbolic.plugin`.
"""

__version__ = "0.1.0"
