"""Kernels of maps that change the lengths of vectors, behind :mod:`polyattn_core.geometry`."""
