"""Sparse and linear attention: less work or less memory than all pairs.

Importing this package imports nothing else; the manifest is :mod:`polyattn_sparse.plugin`.
"""

__version__ = "0.1.0"
