"""Attention by how far tokens disagree on a sheaf.

Importing this package imports nothing else; the manifest is :mod:`polyattn_sheaf.plugin`.
"""

__version__ = "0.1.0"
