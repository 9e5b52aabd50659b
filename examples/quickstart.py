"""Creating mechanisms by name, masks, one-off use, gradients."""

import numpy as np

import polyattn as pa

rng = np.random.default_rng(0)
x = rng.standard_normal((2, 300, 64), dtype=np.float32)

print("installed:", ", ".join(pa.available()))

flash = pa.create("flash", dim=64, heads=4, causal=True)
print(flash, "→", flash(x).shape)

packed = pa.masks.Documents.from_lengths(100, 150, 50)
print("packed documents →", flash(x, mask=packed).shape)

print("one-off →", pa.attend(x, x, x, "cosine", heads=4).shape)

query = rng.standard_normal(64, dtype=np.float32)
print("one query over a table of vectors →", pa.attend(query, x[0], x[0], "flash").shape)

output, pullback = flash.vjp(x)
gradients = pullback(np.ones_like(output))
print("gradient by the input →", gradients.query.shape)

try:
    pa.create("flsh", dim=64)
except pa.errors.UnknownNameError as error:
    print("a typing error →", error)
