"""Attention over keys that arrive in parts: states of the parts merge in any order."""

import functools

import numpy as np

import polyattn as pa

rng = np.random.default_rng(0)
query = rng.standard_normal((1, 2, 10, 16))
key, value = rng.standard_normal((2, 1, 2, 1000, 16))

flash = pa.create("flash", dim=32, heads=2)
parts = [
    flash.attend_partial(query, key[:, :, a:b], value[:, :, a:b], start=a, total=1000)
    for a, b in ((0, 300), (300, 310), (310, 1000))
]
merged = functools.reduce(lambda a, b: a.merge(b), reversed(parts)).finish()
print("parts against whole:", f"{abs(merged - flash.attend(query, key, value)).max():.1e}")
assert np.allclose(merged, flash.attend(query, key, value))
