"""wprox: proximal optimisation in Wasserstein space."""

from wprox import metrics, stein, theory
from wprox.certificate import Certificate, certify
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
from wprox.maps import (
    AffineMap,
    ComposedMap,
    ConvexMap,
    InverseError,
    MonotoneMap,
    ODEMap,
    ResidualMap,
    SplineMap,
    TransportMap,
)
from wprox.measures import DensityUnknownError, Gaussian, Grid, Measure, Particles, Quantiles
from wprox.models import JKOFlow
from wprox.solvers import GaussianProx, NeuralProx, QuantileProx, SinkhornProx, Solver, Step, StepFailedError

__version__ = "0.1.0"

__all__ = [
    "KL",
    "AffineMap",
    "Certificate",
    "ComposedMap",
    "Congestion",
    "ConvexMap",
    "DensityBounds",
    "DensityUnknownError",
    "Entropy",
    "Functional",
    "Gaussian",
    "GaussianProx",
    "Grid",
    "InteractionEnergy",
    "InternalEnergy",
    "InverseError",
    "JKOFlow",
    "Measure",
    "MonotoneMap",
    "NeuralProx",
    "ODEMap",
    "Particles",
    "PorousMedium",
    "PotentialEnergy",
    "QuantileProx",
    "Quantiles",
    "ResidualMap",
    "SinkhornProx",
    "Solver",
    "SplineMap",
    "Step",
    "StepFailedError",
    "Trajectory",
    "TransportMap",
    "certify",
    "jko",
    "jko_steps",
    "metrics",
    "stein",
    "theory",
]
