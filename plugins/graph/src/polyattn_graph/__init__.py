"""Attention on graphs: along their edges, or with positions and biases taken from them.

Importing this package imports nothing else; the manifest is :mod:`polyattn_graph.plugin`.
"""

__version__ = "0.1.0"
