"""Kernels of two-stage attention: the filter, and attention to the candidates it leaves."""
