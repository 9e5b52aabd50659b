"""Attention in products of spaces of constant curvature, and tools for such spaces.

Importing this package imports nothing else; the manifest is :mod:`polyattn_curvature.plugin`,
maps are in :mod:`polyattn_curvature.tangent`, quantisation in :mod:`polyattn_curvature.quantiser`.
"""

__version__ = "0.1.0"
