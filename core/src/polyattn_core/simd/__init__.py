"""The Numba tool kit under the kernels.

==============  =====================================================================
``target``      what this processor's vectors are, and the tile shapes that suit it
``jit``         the one place that decides how anything is compiled and cached
``notices``     who is told of compilations
``vector``      building blocks that emit LLVM vector code
``tiles``       the matrix products and the soft-max step on one tile
``masking``     mask programs: classify a tile, fill a tile
``rules``       score rules: small functions compiled into passes over a tile
``scores``      everything between raw products and final scores of a tile
``forward``     the streaming kernel: soft-max, soft-pick, element-wise weights
``panel``       the kernel of normalisers that need a whole row: sparsemax, entmax, top-k
``weights``     weights, entropy and column mass, recomputed tile by tile
``backward``    gradients by recomputation
``threads``     work sharing between threads
==============  =====================================================================

Imported by kernels and by :mod:`polyattn_core.streaming`, never at import of a plugin.
"""
