"""Standard attention: the soft-max, and what can stand in its place.

Importing this package imports nothing else; the manifest is :mod:`polyattn_standard.plugin`.
"""

__version__ = "0.1.0"
