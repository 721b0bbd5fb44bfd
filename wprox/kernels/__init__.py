"""Radial kernels: of attraction and repulsion for `InteractionEnergy`, of discrepancies for `MMD` and `KSD`."""

from wprox.kernels.base import EvenKernel, RadialKernel
from wprox.kernels.discrepancy import Gaussian, InverseMultiquadric, Laplace, Riesz, median_bandwidth
from wprox.kernels.interaction import Logarithmic, Morse, PowerLaw

__all__ = [
    "EvenKernel",
    "Gaussian",
    "InverseMultiquadric",
    "Laplace",
    "Logarithmic",
    "Morse",
    "PowerLaw",
    "RadialKernel",
    "Riesz",
    "median_bandwidth",
]
