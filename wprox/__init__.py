"""wprox: proximal optimisation in Wasserstein space."""

from wprox.functionals import (
    KL,
    Congestion,
    DensityBounds,
    Entropy,
    Functional,
    InteractionEnergy,
    InternalEnergy,
    PorousMedium,
    PotentialEnergy,
)
from wprox.jko import Trajectory, jko, jko_steps
from wprox.maps import AffineMap, ComposedMap, SplineMap, TransportMap
from wprox.measures import DensityUnknownError, Gaussian, Grid, Measure, Particles
from wprox.solvers import NeuralProx, SinkhornProx, Solver, Step, StepFailedError

__version__ = "0.1.0"

__all__ = [
    "KL",
    "AffineMap",
    "ComposedMap",
    "Congestion",
    "DensityBounds",
    "DensityUnknownError",
    "Entropy",
    "Functional",
    "Gaussian",
    "Grid",
    "InteractionEnergy",
    "InternalEnergy",
    "Measure",
    "NeuralProx",
    "Particles",
    "PorousMedium",
    "PotentialEnergy",
    "SinkhornProx",
    "Solver",
    "SplineMap",
    "Step",
    "StepFailedError",
    "Trajectory",
    "TransportMap",
    "jko",
    "jko_steps",
]
