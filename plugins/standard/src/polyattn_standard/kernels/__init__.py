"""Code that Numba compiles: score rules, and rules of panels."""
