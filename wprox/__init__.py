"""wprox: proximal optimisation in Wasserstein space."""

from wprox import kernels, metrics, stein, theory
from wprox.certificate import Certificate, certify
from wprox.functionals import (
    KL,
    KSD,
    MMD,
    Congestion,
    DensityBounds,
    Entropy,
    Functional,
    InteractionEnergy,
    InternalEnergy,
    PorousMedium,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedWasserstein,
    SquaredWasserstein,
)
from wprox.jko import Trajectory, jko, jko_steps
from wprox.maps import AffineMap, ComposedMap, MonotoneMap, SplineMap, TransportMap
from wprox.measures import DensityUnknownError, Gaussian, Grid, KernelParticles, Measure, Particles, Quantiles
from wprox.models import JKOFlow
from wprox.solvers import (
    ExplicitEuler,
    ForwardBackward,
    GaussianProx,
    Langevin,
    NeuralProx,
    ParticleProx,
    QuantileProx,
    SinkhornProx,
    Solver,
    Step,
    StepFailedError,
)

__version__ = "0.1.0"

__all__ = [
    "KL",
    "KSD",
    "MMD",
    "AffineMap",
    "Certificate",
    "ComposedMap",
    "Congestion",
    "DensityBounds",
    "DensityUnknownError",
    "Entropy",
    "ExplicitEuler",
    "ForwardBackward",
    "Functional",
    "Gaussian",
    "GaussianProx",
    "Grid",
    "InteractionEnergy",
    "InternalEnergy",
    "JKOFlow",
    "KernelParticles",
    "Langevin",
    "Measure",
    "MonotoneMap",
    "NeuralProx",
    "ParticleProx",
    "Particles",
    "PorousMedium",
    "PotentialEnergy",
    "QuantileProx",
    "Quantiles",
    "SinkhornDivergence",
    "SinkhornProx",
    "SlicedWasserstein",
    "Solver",
    "SplineMap",
    "SquaredWasserstein",
    "Step",
    "StepFailedError",
    "Trajectory",
    "TransportMap",
    "certify",
    "jko",
    "jko_steps",
    "kernels",
    "metrics",
    "stein",
    "theory",
]
