"""Functionals on probability measures: written once, run on every measure and solver."""

from wprox.functionals.base import Functional, Sum
from wprox.functionals.bounds import Congestion, DensityBounds
from wprox.functionals.discrepancies import KSD, MMD
from wprox.functionals.divergences import KL
from wprox.functionals.energies import Entropy, InteractionEnergy, InternalEnergy, PorousMedium, PotentialEnergy
from wprox.functionals.transport import SinkhornDivergence, SlicedWasserstein, SquaredWasserstein

__all__ = [
    "KL",
    "KSD",
    "MMD",
    "Congestion",
    "DensityBounds",
    "Entropy",
    "Functional",
    "InteractionEnergy",
    "InternalEnergy",
    "PorousMedium",
    "PotentialEnergy",
    "SinkhornDivergence",
    "SlicedWasserstein",
    "SquaredWasserstein",
    "Sum",
]
