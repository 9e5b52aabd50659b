"""Attention that diffuses over the similarity graph of the keys.

Importing this package imports nothing else; the manifest is :mod:`polyattn_diffusion.plugin`.
"""

__version__ = "0.1.0"
