"""Measures: quadrature rules with a density."""

from wprox.measures.base import DensityUnknownError, Measure
from wprox.measures.gaussian import Gaussian
from wprox.measures.particles import Particles
from wprox.measures.quantiles import Quantiles

__all__ = ["DensityUnknownError", "Gaussian", "Measure", "Particles", "Quantiles"]
