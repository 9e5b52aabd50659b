"""The Numba tool kit under the kernels.

================  ===================================================================
``target``        what this processor's vectors are, and the tile shapes that suit it
``jit``           the one place that decides how anything is compiled
``cache``         compiled code on disk; ``content`` tells what a function computes
``notices``       who is told of compilations
``vector``        building blocks that emit LLVM vector code
``tiles``         the matrix products and the soft-max step on one tile
``transpose``     rows to lanes and back
``formats``       how rows of numbers lie in memory, packed or not
``rows``          products of one query row with many keys
``masking``       mask programs: classify a tile, fill a tile; ``predicates`` of users
``rules``         score rules: small functions compiled into passes over a tile
``mathematics``   elementary functions that vectorise, for rules
``scores``        everything between raw products and final scores of a tile
``forward``       the streaming kernel: soft-max, soft-pick, element-wise weights
``halves``        the streaming kernel of bfloat16, on processors that multiply pairs of it
``panel``         the kernel of normalisers that need a whole row: sparsemax, entmax, top-k
``decode``        the kernel for few queries and many keys; ``decoding`` is its front, ``key_rules``
                  are score rules along keys
``weights``       weights, column mass and top weights, recomputed tile by tile
``backward``      gradients by recomputation
``edges``         sums, products and soft-max over the edges of sparse graphs
``radial``        lengths of vectors, and vectors times a number each
``threads``       work sharing between threads
``requests``      what a call of the engine takes and returns; ``arguments`` makes those of kernels
``engine``        the front of them all: allocates, chooses a kernel, merges chunks
================  ===================================================================

Imported by kernels and by :mod:`polyattn_core.streaming`, never at import of a plugin.
"""
