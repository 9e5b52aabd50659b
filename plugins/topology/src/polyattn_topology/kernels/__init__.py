"""Kernels: cuts and coherence of the key graph, minimum spanning trees, fingerprints of memory."""
