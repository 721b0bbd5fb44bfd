"""Solvers of the proximal step: one method, step(functional, measure, step_size) -> Step."""

from wprox.solvers.base import Solver, Step, StepFailedError
from wprox.solvers.explicit import ExplicitEuler, ExplicitStep
from wprox.solvers.forward_backward import ForwardBackward, ForwardBackwardStep
from wprox.solvers.gaussian import GaussianProx
from wprox.solvers.grid.sinkhorn import SinkhornProx, SinkhornStep
from wprox.solvers.langevin import Langevin
from wprox.solvers.neural.neural import NeuralProx
from wprox.solvers.particle import ParticleProx, ParticleStep
from wprox.solvers.quantile import QuantileProx

__all__ = [
    "ExplicitEuler",
    "ExplicitStep",
    "ForwardBackward",
    "ForwardBackwardStep",
    "GaussianProx",
    "Langevin",
    "NeuralProx",
    "ParticleProx",
    "ParticleStep",
    "QuantileProx",
    "SinkhornProx",
    "SinkhornStep",
    "Solver",
    "Step",
    "StepFailedError",
]
