"""Several answers to one prompt, whose keys and values are in memory once: three ways."""

import numpy as np

import polyattn as pa

rng = np.random.default_rng(0)
flash = pa.create("flash", dim=256, heads=4, kv_heads=2, causal=True, position="rope")
prompt = rng.standard_normal((2, 1, 2, 500, 64), dtype=np.float32)  # keys and values
answers = rng.standard_normal((2, 3, 2, 20, 64), dtype=np.float32)
query = rng.standard_normal((3, 4, 1, 64), dtype=np.float32)  # of each answer's last token

# 1. Pages: answers begin with the pages of the prompt.
pages = pa.PagedCache.of(flash, pages=100, page_size=16, storage="bfloat16")
beginning = pages.add()
pages.append(*prompt, beginning)
own = [pages.fork(beginning) for _ in range(3)]
pages.append(*answers, own)
by_pages = flash.attend_cached(query, pages, sequences=own)
print("pages in use:", pages.pages - pages.free_pages, "of the prompt alone:", -(-500 // 16))

# 2. Two caches: the first, of one sequence, is the beginning of all in the second.
first = pa.KVCache.of(flash, storage="bfloat16")
first.append(*prompt)
second = pa.KVCache.of(flash, batch=3, start=500, storage="bfloat16")
second.append(*answers)
by_caches = flash.attend_cached(query, first, second)

# 3. States: what was seen of the prompt merges with what is seen of the answer, wherever that is.
plain = pa.create("flash", dim=256, heads=4, kv_heads=2)
states = [plain.attend_partial(query, *(np.broadcast_to(x, (3, *x.shape[1:])) for x in prompt))]
states += [plain.attend_partial(query, *(x[:, :, a : a + 10] for x in answers)) for a in (0, 10)]
by_states = states[0].merge(*states[1:]).finish()

whole = np.concatenate([np.broadcast_to(prompt, (2, 3, 2, 500, 64)), answers], axis=3)
expected = flash.attend(query, *whole)
for name, found in (("pages", by_pages), ("caches", by_caches)):
    print(f"{name} against whole: {abs(found - expected).max():.1e}, of bfloat16")
    assert np.allclose(found, expected, atol=0.02)
print(f"states against whole: {abs(by_states - plain.attend(query, *whole)).max():.1e}")
assert np.allclose(by_states, plain.attend(query, *whole), atol=1e-5)
