"""Measures: quadrature rules with a density."""

from wprox.measures.base import DensityUnknownError, Measure
from wprox.measures.gaussian import Gaussian
from wprox.measures.grid import Grid
from wprox.measures.particles import KernelParticles, Particles
from wprox.measures.quantiles import Quantiles

__all__ = ["DensityUnknownError", "Gaussian", "Grid", "KernelParticles", "Measure", "Particles", "Quantiles"]
