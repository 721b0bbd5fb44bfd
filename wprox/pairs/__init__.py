"""Sums over all pairs of points: kernels, functions, log-densities and the Stein kernel, by blocks or KeOps."""
