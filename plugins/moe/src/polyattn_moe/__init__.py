"""Mixtures of attention experts: a router sends each token to a few of them.

Importing this package imports nothing else; the manifest is :mod:`polyattn_moe.plugin`.
"""

__version__ = "0.1.0"
