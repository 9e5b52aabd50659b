"""Attention through few rows: landmarks, projected tokens, or a table of the size of a head.

All are products of matrices and soft-maxes over few keys or few queries.
"""
